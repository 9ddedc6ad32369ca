/**
 * What a Dockerfile makes, without Docker: its steps are carried out one by one in a folder that stands for the image's
 * root. As much of the language as ours needs; anything else is an error.
 */
import assert from "node:assert/strict";
import { chmod, cp, glob, mkdir, realpath, stat } from "node:fs/promises";
import { basename, join, relative, resolve } from "node:path";
import { run } from "./published.ts";

export interface Instruction {
  readonly name: string;
  readonly text: string;
}

/** One after the other, continued lines joined, comments left out. */
export function parseDockerfile(text: string): Instruction[] {
  const joined = text
    .split("\n")
    .filter((line) => !line.startsWith("#"))
    .join("\n")
    .replaceAll(/\s*\\\n\s*/g, " ");
  return [...joined.matchAll(/^([A-Z]+)\s+(.*)$/gm)].map(([, name = "", rest = ""]) => ({ name, text: rest }));
}

export interface Image {
  /** On this machine. */
  readonly root: string;
  readonly env: Readonly<Record<string, string>>;
  readonly workdir: string;
  /** `uid:gid`. */
  readonly user: string;
  readonly volumes: readonly string[];
  readonly entrypoint: readonly string[];
  readonly command: readonly string[];
  readonly healthcheck: readonly string[];
}

interface Building {
  /** Stands for `/`. */
  readonly root: string;
  /** Of `COPY` without `--from`. */
  readonly context: string;
  /** By the name of a stage: the folder that stands for its root. */
  readonly stages: ReadonlyMap<string, string>;
  /** What the image is made `FROM`, where that is another one of these. */
  readonly base?: Image;
}

/** The top of an image's paths that are rewritten, in commands and variables. */
const ownPaths = /(?<![\w.])\/(?=(?:opt|sluice|tarballs)\b)/g;

/** Carries out one stage, its FROM included. */
export async function buildStage(instructions: readonly Instruction[], o: Building): Promise<Image> {
  const { root } = o;
  const inRoot = (text: string): string => text.replaceAll(ownPaths, `${root}/`);
  let image: Image = {
    env: {},
    workdir: "/",
    user: "0:0",
    volumes: [],
    entrypoint: [],
    command: [],
    healthcheck: [],
    ...o.base,
    root,
  };
  await mkdir(root, { recursive: true });
  const at = (path: string): string => join(root, resolve(image.workdir, path));
  for (const { name, text } of instructions) {
    switch (name) {
      case "FROM":
      case "EXPOSE":
        break;
      case "ENV":
        for (const [, key = "", value = ""] of text.matchAll(/(\w+)=(\S+)/g))
          image = { ...image, env: { ...image.env, [key]: inRoot(value.replace(/\$PATH$/, "")).replace(/:$/, "") } };
        break;
      case "WORKDIR":
        image = { ...image, workdir: resolve(image.workdir, text) };
        await mkdir(at("."), { recursive: true });
        break;
      case "COPY":
        await copy(text, o, at);
        break;
      case "RUN": {
        assert.equal(image.user.split(":")[0]?.replace("root", "0"), "0", `${text} runs as ${image.user}`);
        // Who is not root owns what they make, which is all that matters here.
        const command = process.getuid?.() === 0 ? text : text.replaceAll(/ -[og] \d+/g, "");
        await run("bash", ["-ec", inRoot(command)], at("."), commandEnv(image));
        break;
      }
      case "USER":
        image = { ...image, user: text };
        break;
      case "VOLUME":
        image = { ...image, volumes: [...image.volumes, text] };
        break;
      case "ENTRYPOINT":
        image = { ...image, entrypoint: JSON.parse(text) as string[] };
        break;
      case "CMD":
        image = { ...image, command: JSON.parse(text) as string[] };
        break;
      case "HEALTHCHECK":
        image = { ...image, healthcheck: JSON.parse(text.replace(/^CMD /, "")) as string[] };
        break;
      default:
        assert.fail(`${name} is not known here`);
    }
  }
  return image;
}

/** With the node that runs the tests for the base image's. */
function commandEnv({ env }: Image): NodeJS.ProcessEnv {
  const { PATH: path = "", ...rest } = env;
  return { ...rest, PATH: [path, process.env["PATH"]].join(":") };
}

async function copy(text: string, { context, stages, root }: Building, at: (path: string) => string): Promise<void> {
  const words = text.split(/\s+/);
  const from = /^--from=(.*)$/.exec(words[0] ?? "")?.[1];
  if (from) words.shift();
  const source = from ? stages.get(from) : context;
  const target = words.pop();
  assert.ok(source && target && words.length > 0, `COPY ${text}`);
  for (const word of words) {
    const path = from ? join(source, word) : resolve(context, word);
    // A folder's content, into the folder; a file, into the one that ends with a slash.
    const isFolder = (await stat(path)).isDirectory();
    const into = isFolder || !/\/$|^\.$/.test(target) ? at(target) : join(at(target), basename(path));
    assert.ok(!relative(root, into).startsWith(".."));
    await cp(path, into, { recursive: true, verbatimSymlinks: true });
  }
}

/** Takes all rights to write from everybody, as `docker run --read-only` does, but for the volumes. */
export async function makeReadOnly({ root, volumes }: Image): Promise<void> {
  const writable = await Promise.all(volumes.map((volume) => realpath(join(root, volume))));
  for await (const entry of glob("**", { cwd: root, withFileTypes: true })) {
    const path = join(entry.parentPath, entry.name);
    if (entry.isSymbolicLink() || writable.some((volume) => path === volume || path.startsWith(`${volume}/`))) continue;
    await chmod(path, (await stat(path)).mode & 0o555);
  }
}
