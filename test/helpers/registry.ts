/**
 * The workspace's packages as they would be published, in an npm registry on loopback. What else is asked for is
 * redirected to the registry that npm is configured with.
 */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { readdir, readFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { delimiter, dirname, join } from "node:path";
import { promisify } from "node:util";
import rootManifest from "../../package.json" with { type: "json" };
import { createClone, type Clone } from "./clone.ts";

const run = promisify(execFile);

interface Published {
  readonly name: string;
  readonly version: string;
  readonly file: string;
  readonly content: Buffer;
  readonly manifest: object;
}

/** The package that brings the command `sluice`. */
export const gatewayPackage = "@sluice/kernel";

export interface Registry {
  /** For what runs npm: this registry, no questions, and the node that runs the tests. */
  readonly env: NodeJS.ProcessEnv;
  /** Of each package, the path of its tarball. */
  readonly tarballs: ReadonlyMap<string, string>;
  close(): Promise<void>;
}

export async function startRegistry(): Promise<Registry> {
  // Built and packed in a copy, so that suites side by side don't write into one folder.
  const clone = await createClone();
  try {
    const published = await packAll(clone);
    const { stdout } = await run("npm", ["config", "get", "registry"]);
    return await serve(published, stdout.trim().replace(/\/$/, ""), clone);
  } catch (error) {
    await clone.remove();
    throw error;
  }
}

async function packAll({ folder }: Clone): Promise<Published[]> {
  const env = { ...process.env, PATH: pathWith(join(folder, "node_modules/.bin")) };
  const to = join(dirname(folder), "tarballs");
  await run("npm", ["run", "--silent", "build"], { cwd: folder, env });
  const pnpm = [
    "--yes",
    rootManifest.packageManager,
    "--recursive",
    "--filter",
    "./kernel",
    "--filter",
    "./{plugins,kit}/*",
  ];
  await run("npx", [...pnpm, "pack", "--pack-destination", to], { cwd: folder, env });
  return Promise.all(
    (await readdir(to)).map(async (name) => {
      const file = join(to, name);
      const { stdout } = await run("tar", ["-xzOf", file, "package/package.json"]);
      const manifest = JSON.parse(stdout) as { name: string; version: string };
      return { name: manifest.name, version: manifest.version, file, content: await readFile(file), manifest };
    }),
  );
}

const pathWith = (bins: string): string => [dirname(process.execPath), bins, process.env["PATH"]].join(delimiter);

async function serve(published: readonly Published[], upstream: string, clone: Clone): Promise<Registry> {
  const server = createServer((request, response) => {
    const path = decodeURIComponent(request.url ?? "/").slice(1);
    const asked = published.find(({ name }) => path === name || path.startsWith(`${name}/-/`));
    if (!asked) {
      response.writeHead(302, { location: `${upstream}${request.url}` }).end();
    } else if (path === asked.name) {
      const base = `http://${request.headers.host}`;
      response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(packument(asked, base)));
    } else {
      response.writeHead(200, { "content-type": "application/octet-stream" }).end(asked.content);
    }
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  // With it, a test runner inside of ours would report to ours.
  const { NODE_TEST_CONTEXT: _, ...env } = process.env;
  return {
    env: {
      ...env,
      // Without the workspace's own tools: what a package needs, it has to bring.
      PATH: [dirname(process.execPath), process.env["PATH"]].join(delimiter),
      npm_config_registry: `http://127.0.0.1:${port}/`,
      npm_config_yes: "true",
      npm_config_audit: "false",
      npm_config_fund: "false",
      npm_config_loglevel: "error",
      npm_config_update_notifier: "false",
    },
    tarballs: new Map(published.map(({ name, file }) => [name, file])),
    async close() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
      await clone.remove();
    },
  };
}

function packument({ name, version, content, manifest }: Published, base: string): object {
  const dist = {
    tarball: `${base}/${name}/-/${name.slice(name.indexOf("/") + 1)}-${version}.tgz`,
    integrity: `sha512-${createHash("sha512").update(content).digest("base64")}`,
    shasum: createHash("sha1").update(content).digest("hex"),
  };
  return { name, "dist-tags": { latest: version }, versions: { [version]: { ...manifest, dist } } };
}
