/** A registry of packages as npm asks for them: what is published to it, and no more. */
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { once } from "node:events";
import type { PluginPackage, Tarball } from "./plugin-packages.ts";

export interface NpmRegistry {
  /** For npm's setting `registry`. */
  readonly url: string;
  /** As `latest`, in place of what was. */
  publish(plugin: Required<Pick<PluginPackage, "name" | "version">>, tarball: Tarball): void;
  close(): Promise<void>;
}

export async function startNpmRegistry(): Promise<NpmRegistry> {
  const packages = new Map<string, Map<string, Tarball>>();
  const server = createServer((request, response) => {
    const [name = "", file] = decodeURIComponent(request.url ?? "")
      .slice(1)
      .split("/-/");
    const versions = packages.get(name);
    const tarball = file === undefined ? undefined : versions?.get(file);
    if (tarball) {
      void readFile(tarball.path).then((bytes) => response.end(bytes));
      return;
    }
    if (!versions || file !== undefined) {
      response.writeHead(404).end("{}");
      return;
    }
    const all = [...versions].map(([version, { integrity }]) => {
      const dist = { integrity, tarball: `${url}/${name}/-/${version}` };
      return [version, { name, version, dist }] as const;
    });
    const latest = all.at(-1)?.[0];
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify({ name, "dist-tags": { latest }, versions: Object.fromEntries(all) }));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return {
    url,
    publish({ name, version }, tarball) {
      const versions = packages.get(name) ?? new Map<string, Tarball>();
      packages.set(name, versions.set(version, tarball));
    },
    async close() {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
}
