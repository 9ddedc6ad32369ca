/** The packages as they are published: packed from a copy of the workspace, and offered by a registry of our own. */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { access, cp, mkdir, mkdtemp, readdir, readFile, realpath, rm, symlink, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { delimiter, dirname, join } from "node:path";
import { promisify } from "node:util";
import { eventually } from "./eventually.ts";

const root = join(import.meta.dirname, "../..");

/** The node that runs the tests is the one that `#!/usr/bin/env node` finds. */
export const env: NodeJS.ProcessEnv = {
  ...process.env,
  PATH: [dirname(process.execPath), join(root, "node_modules/.bin"), process.env["PATH"]].join(delimiter),
};

/** Waits for the end of a command. */
export async function run(file: string, args: readonly string[], cwd: string, extra: NodeJS.ProcessEnv = {}) {
  return promisify(execFile)(file, args, { cwd, env: { ...env, ...extra }, maxBuffer: 2 ** 26 });
}

export interface Manifest {
  readonly name: string;
  readonly version: string;
  readonly bin?: Record<string, string>;
  readonly exports?: Record<string, string>;
  readonly dependencies?: Record<string, string>;
  readonly devDependencies?: Record<string, string>;
  readonly sluice?: {
    readonly kinds?: Record<string, { entry: string; schema: string }>;
    readonly commands?: Record<string, string>;
  };
}

export async function readManifest(folder: string): Promise<Manifest> {
  return JSON.parse(await readFile(join(folder, "package.json"), "utf8")) as Manifest;
}

export interface Published {
  /** Of every tarball. */
  readonly tarballs: string;
  /** The distribution, the kernel and the bundled plugins, sorted. */
  readonly names: readonly string[];
  /** The path of its tarball. */
  readonly tarball: (name: string) => string;
  /** Where it is unpacked. */
  readonly unpacked: (name: string) => string;
  remove(): Promise<void>;
}

/**
 * Packs `sluice` and all that it depends on here, in a copy: nothing is written to the workspace. Where the runner gives a
 * folder for it (SLUICE_TEST_PACKED), the first suite that asks packs for all of them.
 */
export async function packAll(): Promise<Published> {
  const shared = process.env["SLUICE_TEST_PACKED"];
  const folder = await realpath(shared ?? (await mkdtemp(join(tmpdir(), "sluice-published-"))));
  if (shared === undefined || (await isFirst(folder))) await pack(folder);
  else await eventually(() => isThere(join(folder, "packed")), true, 120_000);
  return await publishedIn(folder, shared === undefined);
}

async function isFirst(folder: string): Promise<boolean> {
  return await succeeds(mkdir(join(folder, "begun")));
}

async function isThere(path: string): Promise<boolean> {
  return await succeeds(access(path));
}

async function succeeds(work: Promise<unknown>): Promise<boolean> {
  return await work.then(
    () => true,
    () => false,
  );
}

async function pack(folder: string): Promise<void> {
  const copy = join(folder, "workspace");
  const keep = (source: string): boolean => !/\/(dist|data)$|\.tsbuildinfo$/.test(source.slice(root.length));
  for (const name of await readdir(root)) {
    if (["node_modules", "test", ".git", ".cache", ".ci"].includes(name)) continue;
    await cp(join(root, name), join(copy, name), { recursive: true, verbatimSymlinks: true, filter: keep });
  }
  // Links of the packages lead there.
  await symlink(join(root, "node_modules"), join(copy, "node_modules"));
  const tarballs = join(folder, "tarballs");
  await run("npm", ["run", "--silent", "pack:all", tarballs], copy);
  for (const file of await readdir(tarballs)) {
    const into = join(folder, "unpacked", file);
    await mkdir(into, { recursive: true });
    await run("tar", ["-xzf", join(tarballs, file), "-C", into], folder);
  }
  await writeFile(join(folder, "packed"), "");
}

async function publishedIn(folder: string, isOwn: boolean): Promise<Published> {
  const tarballs = join(folder, "tarballs");
  const packages = new Map<string, { tarball: string; unpacked: string }>();
  for (const file of await readdir(tarballs)) {
    const unpacked = join(folder, "unpacked", file, "package");
    packages.set((await readManifest(unpacked)).name, { tarball: join(tarballs, file), unpacked });
  }
  const find = (name: string) => {
    const found = packages.get(name);
    if (!found) throw new Error(`${name} was not packed`);
    return found;
  };
  return {
    tarballs,
    names: [...packages.keys()].toSorted(),
    tarball: (name) => find(name).tarball,
    unpacked: (name) => find(name).unpacked,
    async remove() {
      if (isOwn) await rm(folder, { recursive: true, force: true });
    },
  };
}

export interface Registry {
  /** For npm and pnpm: makes this the registry that they ask. */
  readonly env: NodeJS.ProcessEnv;
  close(): Promise<void>;
}

/** Answers for the packages given, as npm's registry does; for any other, it names the one that this machine uses. */
export async function startRegistry({ names, tarball, unpacked }: Published): Promise<Registry> {
  const { stdout } = await run("npm", ["config", "get", "registry"], tmpdir());
  const upstream = stdout.trim().replace(/\/$/, "");
  const server = createServer((request, response) => {
    const path = decodeURIComponent(request.url ?? "").slice(1);
    const name = path.replace(/\/-\/.*$/, "");
    if (!names.includes(name)) {
      response.writeHead(302, { location: `${upstream}${request.url}` }).end();
      return;
    }
    void answer(name, path !== name).then((body) => response.end(body));
  });
  async function answer(name: string, wantsTarball: boolean): Promise<Buffer | string> {
    const bytes = await readFile(tarball(name));
    if (wantsTarball) return bytes;
    const manifest = await readManifest(unpacked(name));
    const dist = {
      tarball: `${url}/${name}/-/package.tgz`,
      integrity: `sha512-${createHash("sha512").update(bytes).digest("base64")}`,
      shasum: createHash("sha1").update(bytes).digest("hex"),
    };
    const { version } = manifest;
    return JSON.stringify({ name, "dist-tags": { latest: version }, versions: { [version]: { ...manifest, dist } } });
  }
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return {
    env: { npm_config_registry: url },
    async close() {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
}
