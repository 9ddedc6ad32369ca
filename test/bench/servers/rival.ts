/** Servers that no package manager of this repository installs: made once from pinned files, kept in .cache. */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { cp, mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { findFreePort } from "../../helpers/free-port.ts";
import { collectGarbage, nodeFlags } from "./node-flags.ts";
import { type ServerKind, spawnServer } from "./server.ts";

const execute = promisify(execFile);
const rivals = join(import.meta.dirname, "../rivals");
const cacheFolder = join(import.meta.dirname, "../../../.cache/bench");
const makeTimeoutMs = 240_000;

interface Rival {
  /** Of the folder, and of the files whose content says whether it has to be made anew. */
  readonly files: readonly string[];
  readonly make: (folder: string) => Promise<unknown>;
  /** Its command; a port and, for TLS, the files of certificate and key are added. */
  command(folder: string): readonly string[];
  readonly isNode: boolean;
}

/** aedes is an npm package, mochi-mqtt a Go module. */
const known: Readonly<Record<string, Rival>> = {
  aedes: {
    files: ["package.json", "package-lock.json", "server.js"],
    make: (cwd) => {
      const args = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"];
      return execute("npm", args, { cwd, timeout: makeTimeoutMs });
    },
    command: (folder) => [process.execPath, ...nodeFlags, join(folder, "server.js")],
    isNode: true,
  },
  mochi: {
    files: ["go.mod", "go.sum", "main.go"],
    make: (cwd) => execute("go", ["build", "-o", "mochi", "."], { cwd, timeout: makeTimeoutMs }),
    command: (folder) => [join(folder, "mochi")],
    isNode: false,
  },
};

/** Undefined for a name that is not known. */
export function rival(name: string): ServerKind | undefined {
  const found = known[name];
  if (!found) return undefined;
  return {
    name,
    setups: ["broker", "tls"],
    async start({ setup, folder, identity }) {
      const port = await findFreePort();
      const [command = "", ...args] = found.command(await made(name, found));
      args.push(String(port));
      if (setup === "tls") {
        const [cert, key] = [join(folder, "cert.pem"), join(folder, "key.pem")];
        await writeFile(cert, identity.cert);
        await writeFile(key, identity.key);
        args.push(cert, key);
      }
      const address = { host: "127.0.0.1", port, ca: setup === "tls" ? identity.cert : undefined };
      const server = await spawnServer(command, args, address);
      return found.isNode ? { ...server, collect: () => collectGarbage(server.pid!) } : server;
    },
  };
}

async function made(name: string, { files, make }: Rival): Promise<string> {
  const hash = createHash("sha256");
  for (const file of files) hash.update(await readFile(join(rivals, name, file)));
  const folder = join(cacheFolder, `${name}-${hash.digest("hex").slice(0, 12)}`);
  if (existsSync(folder)) return folder;
  const part = `${folder}.${process.pid}.part`;
  await mkdir(cacheFolder, { recursive: true });
  try {
    await cp(join(rivals, name), part, { recursive: true });
    await make(part);
    await rename(part, folder);
  } finally {
    await rm(part, { recursive: true, force: true });
  }
  return folder;
}
