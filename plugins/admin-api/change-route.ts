/** Routes that change the config, all or nothing, and what it was before. The app has left the caller's name in `ctx.state.by`. */
import { isUtf8 } from "node:buffer";
import { isDeepStrictEqual } from "node:util";
import type { ParameterizedContext } from "koa";
import type { RouterContext } from "@koa/router";
import type { ConfigChange, ConfigDocument, ConfigResult, Host } from "@sluice/kernel";
import { readBody } from "./body.ts";
import { readDocuments } from "./documents.ts";
import { send } from "./negotiate.ts";
import { problem } from "./problem.ts";
import type { Route } from "./route.ts";

const jsonTypes = ["application/json"];
const yamlTypes = ["application/yaml", "text/yaml", "text/x-yaml", "application/x-yaml"];

/** Times that a change is worked out anew because another one came in between. */
const maxAttempts = 10;

/** Works out a change from what runs; throws what is wrong with it. */
type Change = (running: readonly ConfigDocument[]) => ConfigChange;

export function changeRoutes(host: Host, maxBodyBytes: number): Route[] {
  /** Answers with what a change does, or with `?dryRun=true` would do. */
  async function apply(ctx: RouterContext, change: Change, status = 200): Promise<void> {
    const wanted = wantedVersion(ctx);
    const dryRun = isTrue(ctx, "dryRun");
    for (let attempt = 1; ; attempt++) {
      const version = host.config.version();
      const running = host.config.documents();
      const known = change(running);
      try {
        // What was looked up above must still be so: without a wish of the caller's, another look is all it takes.
        const result = await host.config.apply(known, {
          by: ctx.state["by"] as string,
          dryRun,
          ifVersion: wanted ?? version,
        });
        answer(ctx, result, dryRun ? 200 : status, dryRun ? running : undefined);
        return;
      } catch (error) {
        if (wanted !== undefined || attempt === maxAttempts || !isConflict(error)) throw error;
      }
    }
  }

  async function documentsOf(ctx: ParameterizedContext): Promise<readonly ConfigDocument[]> {
    // A page of another site can send forms and text without being asked first, but none of these types.
    const type = ctx.is([...jsonTypes, ...yamlTypes]);
    if (type === false || type === null) {
      throw problem(415, `say what the body is: Content-Type ${[...jsonTypes, ...yamlTypes].join(", ")}`);
    }
    const bytes = await readBody(ctx, maxBodyBytes);
    if (!isUtf8(bytes)) throw problem(400, "the body is not UTF-8");
    const { documents, problems } = readDocuments(bytes.toString(), "body", jsonTypes.includes(type));
    if (problems.length > 0) throw problem(400, summaryOf(problems), problems);
    return documents;
  }

  return [
    {
      method: "POST",
      path: "/objects",
      summary: "create one object or several; 409 where a name is taken",
      async handle(ctx) {
        const put = await documentsOf(ctx);
        await apply(
          ctx,
          (running) => {
            const taken = put.find(({ name }) => running.some((each) => each.name === name));
            if (taken) throw problem(409, `conflict name: ${taken.name}`);
            return { put };
          },
          201,
        );
      },
    },
    {
      method: "PUT",
      path: "/objects",
      summary: "create or replace one object or several",
      async handle(ctx) {
        const put = await documentsOf(ctx);
        await apply(ctx, () => ({ put }));
      },
    },
    {
      method: "PUT",
      path: "/objects/:name",
      summary: "replace one object",
      async handle(ctx) {
        const put = await documentsOf(ctx);
        const [document] = put;
        if (!document || put.length > 1) throw problem(400, "one object is expected: PUT /objects takes several");
        await apply(ctx, (running) => {
          const name = ctx.params["name"];
          const kinds = running.filter((each) => each.name === name).map(({ kind }) => kind);
          if (kinds.length === 0) throw problem(404, "not found");
          if (document.name !== name) throw problem(400, "inconsistent name in url and spec");
          if (!kinds.includes(document.kind)) {
            throw problem(400, `different kinds: ${kinds.join(", ")}, ${document.kind}`);
          }
          return { put };
        });
      },
    },
    {
      method: "DELETE",
      path: "/objects/:name",
      summary: "remove one object; where two kinds have the name, ?kind= says which",
      handle: (ctx) =>
        apply(ctx, (running) => {
          const name = ctx.params["name"];
          const wanted = one(ctx, "kind");
          const found = running.filter((each) => each.name === name && (wanted === undefined || each.kind === wanted));
          if (found.length === 0) throw problem(404, "not found");
          if (found.length > 1) {
            throw problem(400, `say ?kind=: ${found.map((each) => `${each.kind} ${each.name}`).join(", ")}`);
          }
          return { remove: found.map(toRef) };
        }),
    },
    {
      method: "DELETE",
      path: "/objects",
      summary: "remove several: ?object=KIND/NAME, as often as needed, or ?all=true with or without &kind=",
      handle: (ctx) =>
        apply(ctx, (running) => {
          const named = [ctx.query["object"] ?? []].flat();
          if (named.length > 0) return { remove: named.map(parseObject) };
          if (!isTrue(ctx, "all")) throw problem(400, "say which: ?object=KIND/NAME, or ?all=true for all of them");
          const wanted = one(ctx, "kind");
          const found = running.filter((each) => (wanted === undefined ? !isSystem(each) : each.kind === wanted));
          return { remove: found.map(toRef) };
        }),
    },
    {
      method: "GET",
      path: "/history",
      summary: "the configs that were applied, newest first: who, when, what changed",
      handle: (ctx) =>
        send(
          ctx,
          host.config.history().map(({ at, ...entry }) => ({ ...entry, at: new Date(at).toISOString() })),
        ),
    },
    {
      method: "POST",
      path: "/history/:version/rollback",
      summary: "apply the config that ran as this version, as a new version",
      async handle(ctx) {
        const text = ctx.params["version"]!;
        const dryRun = isTrue(ctx, "dryRun");
        const ifVersion = wantedVersion(ctx);
        if (!/^\d{1,15}$/.test(text)) throw problem(400, "the version must be a number: GET /history lists them");
        const running = host.config.documents();
        const result = await host.config.rollback(Number(text), {
          by: ctx.state["by"] as string,
          dryRun,
          ...(ifVersion === undefined ? {} : { ifVersion }),
        });
        answer(ctx, result, 200, dryRun ? running : undefined);
      },
    },
  ];
}

/** @param running what a dry run compared with: its answer has the documents that would differ */
function answer(
  ctx: ParameterizedContext,
  { version, plan, documents, warnings, nodes }: ConfigResult,
  status: number,
  running?: readonly ConfigDocument[],
): void {
  ctx.status = status;
  const changes = running && { changes: compareDocuments(running, documents) };
  const shown = warnings.map(({ where, message }) => ({ where, message }));
  send(ctx, { version, plan, ...changes, warnings: shown, ...(nodes && { nodes }) });
}

/** Of one document, as it runs and as it would; secrets are `***` in both. */
export interface DocumentChange {
  readonly kind: string;
  readonly name: string;
  /** Null where there is none. */
  readonly before: ConfigDocument | null;
  readonly after: ConfigDocument | null;
}

function compareDocuments(running: readonly ConfigDocument[], next: readonly ConfigDocument[]): DocumentChange[] {
  const keyOf = ({ kind, name }: ConfigDocument): string => `${kind}/${name}`;
  const before = new Map(running.map((document) => [keyOf(document), document]));
  const after = new Map(next.map((document) => [keyOf(document), document]));
  return [...new Map([...before, ...after])]
    .filter(([key]) => !isDeepStrictEqual(before.get(key), after.get(key)))
    .map(([key, { kind, name }]) => ({ kind, name, before: before.get(key) ?? null, after: after.get(key) ?? null }));
}

/** The gateway's own settings, and this API: not what somebody means who removes all objects. */
function isSystem({ kind }: ConfigDocument): boolean {
  return kind === "Gateway" || kind === "AdminAPI";
}

function toRef({ kind, name }: ConfigDocument): { kind: string; name: string } {
  return { kind, name };
}

function parseObject(text: string): { kind: string; name: string } {
  const [kind, name, ...rest] = text.split("/");
  if (!kind || !name || rest.length > 0) throw problem(400, `object must be KIND/NAME, not ${JSON.stringify(text)}`);
  return { kind, name };
}

/** The version that the caller has seen: `If-Match`, quoted or not, or `X-Config-Version`. */
function wantedVersion(ctx: ParameterizedContext): number | undefined {
  const given = ctx.get("If-Match") || ctx.get("X-Config-Version");
  if (given === "" || given === "*") return undefined;
  const digits = /^(?:W\/)?"?(\d{1,15})"?$/.exec(given.trim())?.[1];
  if (digits === undefined) throw problem(400, "If-Match and X-Config-Version take the number of X-Config-Version");
  return Number(digits);
}

function isConflict(error: unknown): boolean {
  return error instanceof Error && "code" in error && error.code === "CONFIG_CONFLICT";
}

function summaryOf(problems: readonly { readonly where: string; readonly message: string }[]): string {
  const [first] = problems;
  const more = problems.length > 1 ? ` (and ${problems.length - 1} more)` : "";
  return first ? `${first.where}: ${first.message}${more}` : "";
}

function isTrue(ctx: ParameterizedContext, name: string): boolean {
  const value = one(ctx, name);
  if (value === undefined || value === "false") return false;
  // A dry run that is none because of a typing mistake would be a bad surprise.
  if (value !== "true" && value !== "") throw problem(400, `${name} must be true or false`);
  return true;
}

/** A parameter given twice counts by its last value. */
function one(ctx: ParameterizedContext, name: string): string | undefined {
  const value = ctx.query[name];
  return typeof value === "object" ? value.at(-1) : value;
}
