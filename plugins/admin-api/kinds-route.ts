/** What the installed packages bring: kinds of objects, and the catalogue of filters. */
import type { Host, KindInfo } from "@sluice/kernel";
import { send } from "./negotiate.ts";
import { problem } from "./problem.ts";
import type { Route } from "./route.ts";

/** Easegress' words for the kinds that both have; a kind of ours alone is a controller. */
const easegress: Readonly<Record<string, { category: string; aliases: readonly string[] }>> = {
  MQTTProxy: { category: "TrafficGate", aliases: ["mqtt", "mp"] },
  Pipeline: { category: "Pipeline", aliases: ["pl", "pipelines"] },
};

const byName = (a: KindInfo, b: KindInfo): number => (a.kind < b.kind ? -1 : 1);

export function kindRoutes(host: Host): Route[] {
  const objects = (): KindInfo[] =>
    host
      .kinds()
      .filter((each) => each.family !== "filter")
      .toSorted(byName);
  const filters = (): KindInfo[] =>
    host
      .kinds()
      .filter((each) => each.family === "filter")
      .toSorted(byName);
  const filter = (kind: string | undefined): KindInfo | undefined => filters().find((each) => each.kind === kind);

  return [
    {
      method: "GET",
      path: "/object-kinds",
      summary: "the kinds that a document can have",
      handle: (ctx) =>
        send(
          ctx,
          objects().map(({ kind }) => kind),
        ),
    },
    {
      method: "GET",
      path: "/object-api-resources",
      summary: "the kinds that a document can have, with category, aliases and package",
      handle: (ctx) =>
        send(
          ctx,
          objects().map(({ kind, package: from, version, description }) => ({
            Category: easegress[kind]?.category ?? "BusinessController",
            Kind: kind,
            Name: kind.toLowerCase(),
            Aliases: easegress[kind]?.aliases ?? [],
            Package: from,
            Version: version,
            Description: description,
          })),
        ),
    },
    {
      method: "GET",
      path: "/metadata/objects/pipeline/filters",
      summary: "the kinds of filters that are installed",
      handle: (ctx) =>
        send(
          ctx,
          filters().map(({ kind }) => kind),
        ),
    },
    {
      method: "GET",
      path: "/metadata/objects/pipeline/filters/:kind",
      summary: "all that is known of one kind of filter",
      handle(ctx) {
        const found = filter(ctx.params["kind"]);
        if (!found) throw problem(404, "not found");
        send(ctx, found);
      },
    },
    {
      method: "GET",
      path: "/metadata/objects/pipeline/filters/:kind/:part",
      summary: "its description, schema or results",
      handle(ctx) {
        const found = filter(ctx.params["kind"]);
        if (!found) throw problem(404, "not found");
        switch (ctx.params["part"]) {
          case "description":
            ctx.set("Content-Type", "text/plain; charset=utf-8");
            ctx.body = found.description;
            return;
          case "schema":
            send(ctx, found.schema);
            return;
          case "results":
            // A package's code says what it may return, and it isn't run before the config names the kind.
            if (!found.results) throw problem(404, `the results of ${found.kind} are known once the config uses it`);
            send(ctx, found.results);
            return;
          default:
            throw problem(404, "not found: choose description, schema or results");
        }
      },
    },
  ];
}
