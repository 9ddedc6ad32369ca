/** `npm create sluice-plugin`: what it makes passes as it is, and does its job in a gateway made of published packages. */
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, readdir, readFile, realpath, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test, type TestContext } from "node:test";
import { promisify } from "node:util";
import { connectAsync } from "mqtt";
import { parse } from "yaml";
import { gatewayPackage, startRegistry, type Registry } from "../helpers/registry.ts";

const run = promisify(execFile);
const bin = join(import.meta.dirname, "../../kit/create-sluice-plugin/index.ts");
const slow = { timeout: 600_000 };

async function makeFolder(t?: TestContext): Promise<string> {
  const folder = await realpath(await mkdtemp(join(tmpdir(), "sluice-create-")));
  t?.after(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

describe("from the registry", slow, () => {
  let registry: Registry;
  let home: string;
  before(async () => {
    registry = await startRegistry();
    home = await makeFolder();
  }, slow);
  after(async () => {
    await registry.close();
    await rm(home, { recursive: true, force: true });
  });

  const npm = async (cwd: string, ...args: string[]): Promise<string> =>
    (await run("npm", args, { cwd, env: registry.env })).stdout;

  /** Makes it, has it test itself, packs it, and installs the tarball beside a kernel. Returns the gateway's folder. */
  async function make(name: string, ...flags: string[]): Promise<string> {
    await npm(home, "create", "sluice-plugin@latest", name, "--", ...flags);
    const folder = join(home, name);
    await npm(folder, "install");
    const tested = await npm(folder, "test");
    assert.match(tested, /^ℹ fail 0$/m);
    assert.match(tested, /100 reloads leave the heap flat/);
    await npm(folder, "run", "typecheck");
    await npm(folder, "pack", "--pack-destination", home);
    const gateway = join(home, `${name}-gateway`);
    await mkdir(gateway);
    await writeFile(join(gateway, "package.json"), JSON.stringify({ name: "gateway", private: true }));
    await npm(gateway, "install", gatewayPackage, `../${name}-0.1.0.tgz`);
    return gateway;
  }

  /** What a subscriber to all hears first, once `speak` has been called. */
  async function hear(t: TestContext, gateway: string, config: string, speak?: string): Promise<[string, string]> {
    await writeFile(join(gateway, "sluice.yaml"), config);
    const child = spawn(join(gateway, "node_modules/.bin/sluice"), ["run"], {
      cwd: gateway,
      env: registry.env,
      stdio: ["ignore", "ignore", "pipe"],
    });
    t.after(() => child.kill("SIGKILL"));
    let banner = "";
    const url = await new Promise<string>((resolve, reject) => {
      child.once("exit", () => reject(new Error(banner)));
      child.stderr.setEncoding("utf8").on("data", (text: string) => {
        banner += text;
        const found = /\bmqtt:\/\/127\.0\.0\.1:\d+/.exec(banner)?.[0];
        if (found !== undefined) resolve(found);
      });
    });
    const client = await connectAsync(url, { clientId: "dev1", reconnectPeriod: 0 });
    const heard = new Promise<[string, string]>((resolve) =>
      client.once("message", (topic, payload) => resolve([topic, String(payload)])),
    );
    await client.subscribeAsync("#", { qos: 1 });
    if (speak !== undefined) await client.publishAsync("sensors/kitchen", speak, { qos: 1 });
    const result = await heard;
    await client.endAsync();
    const exited = once(child, "exit");
    child.kill("SIGTERM");
    assert.deepEqual(await exited, [0, null]);
    return result;
  }

  const proxy =
    "kind: AdminAPI\nname: api\nport: 0\n---\nkind: MQTTProxy\nname: mqttproxy\nhost: 127.0.0.1\nport: 0\nbrokerMode: true\n";

  test("a filter", async (t) => {
    const gateway = await make("json-stamp", "--filter");
    const config = `${proxy}rules: [{ when: { packetType: Publish }, pipeline: publish }]
---
kind: Pipeline
name: publish
filters: [{ name: stamp, kind: JsonStamp }]
`;
    assert.deepEqual(await hear(t, gateway, config, '{"celsius":21}'), [
      "sensors/kitchen",
      '{"celsius":21,"device":"dev1"}',
    ]);
  });

  test("a service", async (t) => {
    const gateway = await make("sluice-teller", "--service");
    const [topic, time] = await hear(t, gateway, `${proxy}---\nkind: Teller\nname: teller\ninterval: 0.1\n`);
    assert.equal(topic, "gateway/time");
    assert.ok(Math.abs(Date.now() - Date.parse(time)) < 60_000, time);
  });

  test("the tarball has what runs, and nothing else", async () => {
    const { stdout } = await run("tar", ["-tzf", join(home, "json-stamp-0.1.0.tgz")]);
    const files = ["README.md", "dist/index.js", "package.json", "schema.json"];
    assert.deepEqual(
      stdout.trim().split("\n").toSorted(),
      files.map((file) => `package/${file}`),
    );
  });
});

interface Result {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

async function create(cwd: string, ...args: string[]): Promise<Result> {
  const child = spawn(process.execPath, [bin, ...args], { cwd, stdio: ["ignore", "pipe", "pipe"] });
  let [stdout, stderr] = ["", ""];
  child.stdout.setEncoding("utf8").on("data", (text: string) => (stdout += text));
  child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr += text));
  const [code] = (await once(child, "close")) as [number | null];
  return { code, stdout, stderr };
}

describe("the command", () => {
  test("a scope is no part of the folder, and the kind is made from the name or given", async (t) => {
    const cwd = await makeFolder(t);
    const { code, stdout } = await create(cwd, "@acme/sluice-json-check");
    assert.equal(code, 0);
    assert.match(stdout, /^@acme\/sluice-json-check: a filter, in configs called JsonCheck$/m);
    assert.match(stdout, /cd sluice-json-check\n  npm install\n  npm test\n  npm run dev\n/);
    const folder = join(cwd, "sluice-json-check");
    const manifest = JSON.parse(await readFile(join(folder, "package.json"), "utf8")) as {
      name: string;
      sluice: { kinds: object };
    };
    assert.equal(manifest.name, "@acme/sluice-json-check");
    assert.deepEqual(Object.keys(manifest.sluice.kinds), ["JsonCheck"]);
    const files = await readdir(folder, { recursive: true });
    for (const file of [".gitignore", ".github/workflows/ci.yml", "README.md", "tsconfig.json"]) {
      assert.ok(files.includes(file), file);
    }
    const workflow = parse(await readFile(join(folder, ".github/workflows/ci.yml"), "utf8")) as { jobs: object };
    assert.deepEqual(Object.keys(workflow.jobs), ["test", "publish"]);
    for (const file of files.filter((each) => /\.\w+$/.test(each) && !/^\.git\w*$/.test(each))) {
      assert.doesNotMatch(await readFile(join(folder, file), "utf8"), /__[A-Za-z]+__/, file);
    }

    assert.equal((await create(cwd, "other", "--service", "--kind", "Beat")).code, 0);
    assert.match(await readFile(join(cwd, "other/src/index.ts"), "utf8"), /kind: "Beat"/);
  });

  const wrong: readonly (readonly [name: string, args: readonly string[], message: RegExp])[] = [
    ["no name", [], /Give the package a name/],
    ["a name that npm does not take", ["My Filter"], /is no name for a package/],
    ["a name that leads elsewhere", ["../up"], /is no name for a package/],
    ["a name that gives no kind", ["2-fast"], /is no name for a kind.*--kind/],
    ["a kind that is no name", ["fast", "--kind", "fast"], /is no name for a kind/],
    ["both families", ["a", "--filter", "--service"], /exclude each other/],
    ["two names", ["a", "b"], /one name, not 2/],
    ["an option that it does not have", ["a", "--fliter"], /--fliter/],
  ];
  for (const [name, args, message] of wrong) {
    test(`${name} is wrong usage, and nothing is written`, async (t) => {
      const cwd = await makeFolder(t);
      const { code, stderr } = await create(cwd, ...args);
      assert.equal(code, 2);
      assert.match(stderr, message);
      assert.match(stderr, /Usage: npm create sluice-plugin/);
      assert.deepEqual(await readdir(cwd), []);
    });
  }

  test("a folder that has something in it is left alone", async (t) => {
    const cwd = await makeFolder(t);
    await mkdir(join(cwd, "stamp"));
    await writeFile(join(cwd, "stamp/mine"), "");
    const { code, stderr } = await create(cwd, "stamp");
    assert.equal(code, 1);
    assert.match(stderr, /stamp is not empty: nothing was written/);
    assert.deepEqual(await readdir(join(cwd, "stamp")), ["mine"]);
  });

  test("--help is the usage", async (t) => {
    const { code, stdout } = await create(await makeFolder(t), "--help");
    assert.equal(code, 0);
    assert.match(stdout, /--service/);
  });

  test("on a terminal it asks for what is not given", async (t) => {
    const cwd = await makeFolder(t);
    const command = `${JSON.stringify(process.execPath)} ${JSON.stringify(bin)}`;
    const child = spawn("script", ["-qec", command, "/dev/null"], { cwd, stdio: ["pipe", "pipe", "inherit"] });
    const missing = await Promise.race([once(child, "error"), once(child, "spawn").then(() => undefined)]);
    if (missing) {
      assert.notEqual(process.env["CI"], "true", "script: not found");
      t.skip("script: not found");
      return;
    }
    const closed = once(child, "close");
    let output = "";
    let answered = 0;
    const answers: readonly (readonly [RegExp, string])[] = [
      [/Name of the package/, "asked\n"],
      [/Filter or service\?/, "service\n"],
    ];
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      output += text;
      const [question, answer] = answers[answered] ?? [];
      if (!question?.test(output)) return;
      answered++;
      child.stdin.write(answer);
    });
    assert.deepEqual(await closed, [0, null], output);
    assert.match(await readFile(join(cwd, "asked/src/index.ts"), "utf8"), /ServiceKind/);
  });
});
