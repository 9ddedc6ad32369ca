/** The image that the Dockerfile makes, laid out step by step without Docker: it runs without rights, and writes data alone. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, copyFile, mkdir, mkdtemp, readdir, readFile, realpath, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, test, type TestContext } from "node:test";
import mqtt from "mqtt";
import { parse } from "yaml";
import { buildStage, makeReadOnly, parseDockerfile, type Image, type Instruction } from "../helpers/image.ts";
import { parsePage } from "../helpers/markdown.ts";
import { packAll, run, type Published } from "../helpers/published.ts";
import { npm, writeStamp } from "../helpers/stamp-package.ts";

const repository = join(import.meta.dirname, "../..");
const instructions = parseDockerfile(await readFile(join(repository, "Dockerfile"), "utf8"));

/** By the name that it has, the last one by "". */
function stage(name: string): Instruction[] {
  const froms = instructions.flatMap((each, index) => (each.name === "FROM" ? [index] : []));
  const begin = froms.findLast((index) => (/ AS (\w+)$/.exec(instructions[index]?.text ?? "")?.[1] ?? "") === name);
  assert.ok(begin !== undefined, `there is no stage ${name}`);
  return instructions.slice(
    begin,
    froms.find((index) => index > begin),
  );
}

let folder: string;
let published: Published;
let image: Image;

before(
  async () => {
    published = await packAll();
    folder = await realpath(await mkdtemp(join(tmpdir(), "sluice-image-")));
    // Anybody may pass through it.
    await chmod(folder, 0o755);
    const pack = join(folder, "pack");
    await mkdir(pack);
    await run("cp", ["-r", published.tarballs, join(pack, "tarballs")], folder);
    const context = repository;
    const stages = new Map([["pack", pack]]);
    const install = await buildStage(stage("install"), { root: join(folder, "install"), context, stages });
    stages.set("install", install.root);
    image = await buildStage(stage(""), { root: join(folder, "root"), context, stages });
    // The base image's: this machine's may lie where nobody else can read.
    await mkdir(join(image.root, "usr/bin"), { recursive: true });
    await copyFile(process.execPath, join(image.root, "usr/bin/node"));
  },
  { timeout: 180_000 },
);
after(async () => {
  await published.remove();
  // As others than root, what was made read-only has to be made writable first.
  await run("chmod", ["-R", "u+w", folder], tmpdir());
  await rm(folder, { recursive: true, force: true });
});

const api = "kind: AdminAPI\nname: admin-api\nport: 0\n";

/** The image with other files in it, as mounts or further steps put them there; then nothing can be changed any more. */
async function variant(t: TestContext, change: (root: string) => Promise<Image | void>): Promise<Image> {
  const root = join(folder, `variant-${t.name.replaceAll(/\W/g, "")}`);
  await run("cp", ["-r", "--no-dereference", "--preserve=all", image.root, root], folder);
  const rebased = { ...image, root, env: rebase(image.env, image.root, root) };
  const made = (await change(root)) ?? rebased;
  await makeReadOnly(made);
  return made;
}

function rebase(env: Image["env"], from: string, to: string): Record<string, string> {
  return Object.fromEntries(Object.entries(env).map(([key, value]) => [key, value.replaceAll(from, to)]));
}

/** A command in a container: without rights where this process has any to give up. */
function start({ root, workdir, user, ...of }: Image, command: readonly string[], env: Record<string, string> = {}) {
  const [uid, gid] = user.split(":").map(Number);
  assert.ok(uid && gid, `${user} is root`);
  const [file = "", ...args] = command;
  return spawn("/usr/bin/env", [file, ...args], {
    cwd: join(root, workdir),
    env: { ...of.env, PATH: `${of.env["PATH"]}:${join(root, "usr/bin")}:/usr/bin:/bin`, HOME: "/nonexistent", ...env },
    stdio: ["ignore", "pipe", "pipe"],
    ...(process.getuid?.() === 0 ? { uid, gid } : {}),
  });
}

interface Container {
  /** `mqtt://127.0.0.1:port` */
  readonly mqtt: string;
  readonly http: string;
  /** Ends it as `docker stop` does. */
  stop(): Promise<unknown>;
}

async function runContainer(t: TestContext, of: Image): Promise<Container> {
  const child = start(of, [...of.entrypoint, ...of.command], { SLUICE_MQTT_PORT: "0" });
  const exited = once(child, "exit");
  t.after(() => child.kill("SIGKILL"));
  child.stdout.resume();
  let text = "";
  const urls = await new Promise<string[]>((resolve, reject) => {
    const lines = createInterface({ input: child.stderr });
    lines.on("line", (line) => {
      text += `${line}\n`;
      const found = [/\bmqtt:\/\/127\.0\.0\.1:\d+/, /\bhttp:\/\/127\.0\.0\.1:\d+/].map((url) => url.exec(text)?.[0]);
      if (found.every((url) => url !== undefined)) resolve(found);
    });
    lines.once("close", () => reject(new Error(`it has ended:\n${text}`)));
  });
  return {
    mqtt: urls[0] ?? "",
    http: urls[1] ?? "",
    async stop() {
      child.kill("SIGTERM");
      return (await exited)[0];
    },
  };
}

async function listing(root: string): Promise<string[]> {
  const files = await readdir(root, { recursive: true });
  return files.filter((file) => !file.startsWith("sluice/data")).toSorted();
}

test("its first stage makes what the others are made of, as the tests do", () => {
  const commands = stage("pack").filter(({ name }) => name === "RUN");
  assert.match(commands.at(-1)?.text ?? "", /npm run --silent pack:all \/tarballs$/);
  const bases = instructions.filter(({ name }) => name === "FROM").map(({ text }) => text.split(" ")[0]);
  assert.deepEqual(new Set(bases), new Set(["node:24-slim"]));
});

test("what it runs by itself is a valid config", async (t) => {
  const plain = await variant(t, () => Promise.resolve());
  const child = start(plain, [...plain.entrypoint, "check"]);
  let output = "";
  child.stdout.on("data", (text: Buffer) => (output += String(text)));
  child.stderr.on("data", (text: Buffer) => (output += String(text)));
  assert.deepEqual(await once(child, "close"), [0, null], output);
  assert.match(output, /config\/sluice\.yaml: \d+ documents, no problems, no warnings$/m);
});

test("without rights, on a tree that can't be written: records and nothing else, healthy, ended by SIGTERM", async (t) => {
  const container = await variant(t, async (root) => {
    const config = join(root, "sluice/config/sluice.yaml");
    await writeFile(config, `${await readFile(config, "utf8")}---\n${api}`);
  });
  const listed = await listing(container.root);
  const gateway = await runContainer(t, container);
  const client = await mqtt.connectAsync(gateway.mqtt, { username: "test", password: "test", reconnectPeriod: 0 });
  await client.publishAsync("gateway/gate123/iphone/log", "hi", { qos: 1 });
  await client.endAsync();
  const health = start(container, container.healthcheck, { SLUICE_API: gateway.http });
  assert.deepEqual(await once(health, "exit"), [0, null]);
  assert.equal(await gateway.stop(), 0);
  const dead = start(container, container.healthcheck, { SLUICE_API: gateway.http });
  assert.deepEqual(await once(dead, "exit"), [1, null]);

  const data = join(container.root, "sluice/data");
  assert.match(await readFile(join(data, "iot_phone.ndjson"), "utf8"), /"value":"hi"/);
  assert.deepEqual(await listing(container.root), listed, "nothing but data was written");
  const uid = process.getuid?.() === 0 ? Number(container.user.split(":")[0]) : process.getuid?.();
  assert.equal((await stat(join(data, "iot_phone.ndjson"))).uid, uid);
});

test("docs/install.md: an image of one's own, with a plugin", { timeout: 60_000 }, async (t) => {
  const { blocks } = parsePage(await readFile(join(repository, "docs/install.md"), "utf8"));
  const block = blocks.find(({ language }) => language === "dockerfile");
  assert.ok(block);
  // What the page takes from npm's registry is taken from here.
  const context = join(folder, "context");
  await writeStamp(join(folder, "stamp"), "1.0.0");
  await npm(folder, "pack", "./stamp");
  await mkdir(context);
  await writeFile(
    join(context, "sluice.yaml"),
    `kind: MQTTProxy\nname: mqttproxy\nhost: 127.0.0.1\nport: 0\nbrokerMode: true\nrules: [{ when: { packetType: Publish }, pipeline: p }]\n---\nkind: Pipeline\nname: p\nfilters: [{ name: stamp, kind: Stamp }]\n---\n${api}`,
  );
  const steps = parseDockerfile(block.text.replace(/sluice-stamp@\S+/, join(folder, "stamp-1.0.0.tgz")));
  assert.equal(steps[0]?.name, "FROM");
  const container = await variant(t, (root) =>
    buildStage(steps, {
      root,
      context,
      stages: new Map(),
      base: { ...image, env: rebase(image.env, image.root, root) },
    }),
  );
  assert.equal(container.user, image.user);
  const gateway = await runContainer(t, container);
  const client = await mqtt.connectAsync(gateway.mqtt, { reconnectPeriod: 0 });
  await client.subscribeAsync("t", { qos: 1 });
  const got = new Promise((resolve) => client.once("message", (_topic, payload) => resolve(String(payload))));
  await client.publishAsync("t", "x", { qos: 1 });
  assert.match(String(await got), /^1\.0\.0 1\.0\.0 none 1 /);
  await client.endAsync();
  assert.equal(await gateway.stop(), 0);
});

test("compose.yaml: the gateway finds its config and, by a name of the broker's own, Kafka", async () => {
  interface Service {
    readonly environment: Record<string, string | number>;
    readonly command?: string[];
    readonly read_only?: boolean;
    readonly volumes?: string[];
  }
  const { services } = parse(await readFile(join(repository, "compose.yaml"), "utf8")) as {
    services: { kafka: Service; sluice: Service };
  };
  const { kafka, sluice } = services;
  const advertised = String(kafka.environment["KAFKA_ADVERTISED_LISTENERS"]).split(",");
  assert.ok(advertised.includes(`CONTAINER://${sluice.environment["KAFKA_BROKERS"]}`));
  const [, config = ""] = /-c (\S+)/.exec(sluice.command?.join(" ") ?? "") ?? [];
  assert.ok((await stat(join(image.root, image.workdir, config))).isFile());
  assert.equal(sluice.read_only, true);
  assert.deepEqual(
    sluice.volumes,
    image.volumes.map((volume) => `data:${volume}`),
  );
});

test("compose.cluster.yaml: three gateways with one config find three NATS servers that find one another", async () => {
  interface Service {
    readonly hostname?: string;
    readonly environment?: { readonly NODE_NAME: string };
    readonly command: string[];
  }
  const text = await readFile(join(repository, "compose.cluster.yaml"), "utf8");
  const { services, configs } = parse(text, { merge: true }) as {
    services: Record<string, Service>;
    configs: { nats: { content: string } };
  };
  const servers = Object.values(services).flatMap(({ hostname }) => hostname ?? []);
  assert.equal(servers.length, 3);
  const routes = [...configs.nats.content.matchAll(/nats:\/\/([\w-]+):6222/g)].map(([, host]) => host);
  assert.deepEqual(routes, servers);
  assert.match(configs.nats.content, /sync_interval: always/);
  const gateways = Object.values(services).filter(({ environment }) => environment);
  assert.deepEqual(
    gateways.map(({ environment }) => environment?.NODE_NAME),
    ["sluice-1", "sluice-2", "sluice-3"],
  );
  for (const { command } of gateways) {
    const [, config = ""] = /-c (\S+)/.exec(command.join(" ")) ?? [];
    const shipped = await readFile(join(image.root, image.workdir, config), "utf8");
    const named = [...shipped.matchAll(/nats:\/\/([\w-]+):4222/g)].map(([, host]) => host);
    assert.deepEqual(named, servers);
  }
});
