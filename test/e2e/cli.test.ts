/** The real `sluice`, spawned. */
import assert from "node:assert/strict";
import { spawn, type ChildProcessByStdio } from "node:child_process";
import { mkdir, mkdtemp, realpath, rm, writeFile } from "node:fs/promises";
import { connect, createServer, type AddressInfo } from "node:net";
import { once } from "node:events";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { Readable } from "node:stream";
import { after, before, describe, test } from "node:test";
import { bin } from "../helpers/gateway-under-test.ts";

const fixtures = join(import.meta.dirname, "../fixtures");
const docYaml = join(fixtures, "doc-yaml");

let home: string;
before(async () => {
  home = await realpath(await mkdtemp(join(tmpdir(), "sluice-cli-")));
  await writeFile(join(home, "package.json"), "{}");
  await writeFile(
    join(home, "sluice.yaml"),
    `kind: Gateway\nplugins: { dirs: [${join(fixtures, "plugins")}] }\n---\nkind: Pipeline\nname: gates\nfilters: [{ name: gate, kind: Gate }]\n`,
  );
});
after(() => rm(home, { recursive: true }));

function start(args: readonly string[], env: NodeJS.ProcessEnv = {}): ChildProcessByStdio<null, Readable, Readable> {
  return spawn(process.execPath, [bin, ...args], {
    cwd: home,
    env: { ...process.env, ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
}

async function sluice(...args: string[]): Promise<{ code: number | null; stdout: string; stderr: string }> {
  const child = start(args);
  const [stdout, stderr, [code]] = await Promise.all([
    child.stdout.setEncoding("utf8").toArray(),
    child.stderr.setEncoding("utf8").toArray(),
    once(child, "exit") as Promise<[number | null]>,
  ]);
  return { code, stdout: stdout.join(""), stderr: stderr.join("") };
}

describe("sluice", () => {
  test("--help lists its own commands and those of plugins, with their package", async () => {
    const { code, stdout } = await sluice("--help");
    assert.equal(code, 0);
    for (const line of [
      /^ {2}run \[options\] +start the gateway/m,
      /^ {2}check /m,
      /^ {2}schema /m,
      /^ {2}hash +from @sluice\/auth$/m,
      /^ {2}map +from @sluice\/topic-mapper$/m,
      /^ {2}greet +from fixture-filters$/m,
      /^Exit codes:$/m,
    ]) {
      assert.match(stdout, line);
    }
  });

  test("each command has its --help", async () => {
    for (const command of ["run", "check", "schema"]) {
      const { code, stdout } = await sluice(command, "--help");
      assert.equal(code, 0);
      assert.match(stdout, new RegExp(`^Usage: sluice ${command} \\[options\\]`));
      assert.match(stdout, /-c, --config <file\|folder>/);
    }
    for (const args of [
      ["greet", "--help"],
      ["greet", "-h"],
      ["help", "greet"],
    ]) {
      assert.deepEqual(await sluice(...args), { code: 0, stdout: "Usage: sluice greet [-c FILE] NAME\n", stderr: "" });
    }
  });

  test("--version", async () => {
    const { code, stdout } = await sluice("--version");
    assert.deepEqual([code, /^\d+\.\d+\.\d+\n$/.test(stdout)], [0, true]);
  });

  test("wrong usage exits 2 and says what was meant", async () => {
    const unknown = await sluice("chekc");
    assert.deepEqual([unknown.code, unknown.stdout], [2, ""]);
    assert.match(unknown.stderr, /unknown command 'chekc'\n\(Did you mean check\?\)/);
    assert.match((await sluice("greeet")).stderr, /Did you mean greet\?/);
    assert.equal((await sluice("check", "--cofnig", "x")).code, 2);
    assert.equal((await sluice("check", "-c")).code, 2);
    assert.equal((await sluice()).code, 2);
  });
});

describe("a plugin's command", () => {
  test("is given its arguments and decides the exit code", async () => {
    assert.deepEqual(await sluice("greet", "Ada", "-x"), { code: 3, stdout: "hello Ada -x\n", stderr: "" });
  });

  test("reads the config as run would", async () => {
    const { code, stdout } = await sluice("greet", "-c", join(docYaml, "topic-mapper.yaml"));
    assert.deepEqual([code, stdout], [0, `${docYaml} Pipeline/pipeline-mqtt-publish AdminAPI/admin-api\n`]);
    const bad = await sluice("greet", "-c", join(docYaml, "mqttproxy.yaml"));
    assert.equal(bad.code, 1);
    assert.match(
      bad.stderr,
      /^sluice greet: the config has problems\n.*mqttproxy\.yaml:7:3 > mqttproxy > certificate\[0\]\.cert: is not PEM/,
    );
  });

  test("that throws exits 1", async () => {
    assert.deepEqual(await sluice("greet", "fail"), { code: 1, stdout: "", stderr: "sluice greet: cannot greet\n" });
  });
});

describe("sluice check", () => {
  test("of the page's first example finds its placeholders and nothing else", async () => {
    const file = join(docYaml, "mqttproxy.yaml");
    const problem = (line: number, index: number, field: "cert" | "key") =>
      `${file}:${line}:3 > mqttproxy > certificate[${index}].${field}: is not PEM: it must begin with -----BEGIN ${field === "cert" ? "CERTIFICATE" : "PRIVATE KEY"}----- (is it a placeholder?)\n`;
    assert.deepEqual(await sluice("check", "-c", file), {
      code: 1,
      stdout: `${problem(7, 0, "cert")}${problem(8, 0, "key")}${problem(10, 1, "cert")}${problem(11, 1, "key")}4 problems, no warnings\n`,
      stderr: "",
    });
  });

  test("of its second example finds nothing", async () => {
    const file = join(docYaml, "topic-mapper.yaml");
    assert.deepEqual(await sluice("check", "-c", file), {
      code: 0,
      stdout: `warning: ${file}:1:1: the config has no MQTTProxy document: no device can connect\n${file}: 2 documents, no problems, 1 warning\n`,
      stderr: "",
    });
  });

  test("of the config that npm start runs, and of each example, finds nothing", async () => {
    const config = join(import.meta.dirname, "../../config");
    for (const file of ["sluice.yaml", "examples/mqttproxy.yaml", "examples/topic-mapper.yaml"]) {
      const { code, stdout } = await sluice("check", "-c", join(config, file));
      assert.match(stdout, /^\S+: \d documents, no problems, no warnings\n$/);
      assert.equal(code, 0);
    }
  });

  test("has no colours where nobody sees them", async () => {
    const { stdout } = await sluice("check", "-c", "nowhere.yaml");
    assert.equal(stdout, "nowhere.yaml: there is no such file or folder\n1 problem, no warnings\n");
  });
});

test("sluice schema writes JSON with the options of every kind in reach", async () => {
  const { code, stdout } = await sluice("schema");
  assert.equal(code, 0);
  const schema = JSON.parse(stdout) as { oneOf: { $ref: string }[]; $defs: Record<string, { properties: object }> };
  assert.deepEqual(
    schema.oneOf.map(({ $ref }) => $ref),
    ["Gateway", "MQTTProxy", "Pipeline", "Door", "AdminAPI", "KafkaSource", "LevelStore", "NATSCluster"].map(
      (kind) => `#/$defs/${kind}`,
    ),
  );
  assert.ok("password" in schema.$defs["Gate"]!.properties);
  assert.ok("backend" in schema.$defs["KafkaMQTT"]!.properties);
});

describe("sluice run", () => {
  const proxy = (port: number) =>
    `kind: MQTTProxy\nname: proxy\nhost: 127.0.0.1\nport: ${port}\n---\nkind: AdminAPI\nname: admin-api\nport: 0\n`;
  const write = async (name: string, yaml: string): Promise<string> => {
    const file = join(home, name);
    await writeFile(file, yaml);
    return file;
  };
  /** Resolves with the first line that matches. */
  async function line(stream: Readable, wanted: RegExp): Promise<string> {
    const lines = createInterface({ input: stream });
    for await (const text of lines) if (wanted.test(text)) return text;
    throw new Error(`the stream ended without ${String(wanted)}`);
  }

  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    test(`serves until ${signal}; stdout has JSON lines only, the banner is on stderr`, async () => {
      const child = start(["run", "-c", await write("run.yaml", proxy(0))]);
      const out: string[] = [];
      child.stdout.setEncoding("utf8").on("data", (text: string) => out.push(text));
      const banner = await line(child.stderr, /127\.0\.0\.1:\d+/);
      const port = Number(/127\.0\.0\.1:(\d+)/.exec(banner)?.[1]);
      const socket = connect(port, "127.0.0.1");
      await once(socket, "connect");
      socket.destroy();
      const closed = once(child, "close") as Promise<[number | null]>;
      child.kill(signal);
      const [code] = await closed;
      assert.equal(code, 0);
      const logs = out
        .join("")
        .trimEnd()
        .split("\n")
        .map((text) => JSON.parse(text) as { level: number; msg: string; time: string });
      assert.ok(logs.some(({ msg }) => msg === "stopping"));
      assert.ok(logs.some(({ msg }) => msg.includes("everybody may connect")));
      assert.ok(logs.every(({ time }) => !Number.isNaN(Date.parse(time))));
    });
  }

  test("a second signal ends it at once", async () => {
    const dir = join(home, "slow");
    await mkdir(dir);
    await writeFile(
      join(dir, "package.json"),
      JSON.stringify({
        name: "slow",
        type: "module",
        engines: { sluice: "^1.0.0" },
        sluice: { kinds: { Slow: { family: "service", entry: "./index.js", schema: "./schema.json" } } },
      }),
    );
    await writeFile(join(dir, "schema.json"), '{ "type": "object" }');
    await writeFile(
      join(dir, "index.js"),
      'export default { kind: "Slow", create: () => ({ stop: () => new Promise((done) => setTimeout(done, 60_000)) }) };',
    );
    const child = start([
      "run",
      "-c",
      await write(
        "slow.yaml",
        `kind: Gateway\nplugins: { dirs: [slow] }\n---\nkind: Slow\nname: slow\n---\n${proxy(0)}`,
      ),
    ]);
    await line(child.stderr, /127\.0\.0\.1:\d+/);
    const stopping = line(child.stdout, /"stopping"/);
    child.kill("SIGINT");
    await stopping;
    const exit = once(child, "exit") as Promise<[number | null]>;
    child.kill("SIGINT");
    assert.deepEqual((await exit)[0], 130);
  });

  test("with problems starts nothing, lists them all on stderr and exits 1", async () => {
    const file = await write("bad.yaml", `${proxy(0)}---\nkind: Door\nname: d\n---\nkind: MQTTProxy\nname: x\n`);
    const { code, stdout, stderr } = await sluice("run", "-c", file);
    assert.deepEqual([code, stdout], [1, ""]);
    assert.match(
      stderr,
      /^bad\.yaml:10:1 > d > kind: no installed package provides the kind "Door": install .*\nbad\.yaml:13:1 > x > port: is missing: .*\n2 problems: nothing was started\n$/,
    );
  });

  test("with a port that is taken says so and exits 1", async () => {
    const server = createServer().listen(0, "127.0.0.1");
    await once(server, "listening");
    const { port } = server.address() as AddressInfo;
    const { code, stderr } = await sluice("run", "-c", await write("taken.yaml", proxy(port)));
    server.close();
    assert.equal(code, 1);
    assert.match(stderr, new RegExp(`can't listen on .*${port}.*another process has it`));
  });
});
