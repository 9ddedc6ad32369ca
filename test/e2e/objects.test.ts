/** The real `sluice` changes a running gateway; what it changed is in the files, and there after a restart. */
import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { test, type TestContext } from "node:test";
import mqtt from "mqtt";
import { isLong } from "../helpers/long-test.ts";
import { bin } from "../helpers/gateway-under-test.ts";

const proxy = (extra = ""): string => `# the door
kind: MQTTProxy
name: mqttproxy
host: \${DOOR_HOST:-127.0.0.1} # kept as it is written
port: 0
brokerMode: true
rules:
  - when: { packetType: Publish }
    pipeline: publish
${extra}`;

const pipeline = (banned: string): string =>
  `kind: Pipeline\nname: publish\nfilters:\n  - name: control\n    kind: ConnectControl\n    bannedClients: [${banned}]\n`;

const api = "kind: AdminAPI\nname: admin-api\nport: 0\n";

interface Running {
  readonly process: ChildProcess;
  readonly api: string;
  /** Of the proxy's listener. */
  readonly mqtt: string;
}

/** Spawned with its log as JSON lines on standard output. */
async function run(t: TestContext, config: string): Promise<Running> {
  const child = spawn(process.execPath, [bin, "run", "-c", config], { stdio: ["ignore", "pipe", "ignore"] });
  t.after(() => child.kill("SIGKILL"));
  const text: string[] = [];
  for await (const line of createInterface({ input: child.stdout })) {
    text.push(line);
    const url = /HTTP API at (http:\/\/[\d.:]+)/.exec(text.join("\n"))?.[1];
    if (url === undefined) continue;
    child.stdout.resume();
    const status = async (): Promise<string | undefined> => {
      const answer = await fetch(`${url}/apis/v2/status/objects/mqttproxy`).catch(() => undefined);
      return answer?.ok ? ((await answer.json()) as { status: { address: string } }).status.address : undefined;
    };
    let address = await status();
    while (address === undefined) address = await status();
    return { process: child, api: url, mqtt: `mqtt://127.0.0.1:${address.split(":").at(-1)}` };
  }
  throw new Error(`the gateway ended:\n${text.join("\n")}`);
}

async function sluice(
  url: string,
  args: string[],
  stdin = "",
): Promise<{ code: number; stdout: string; stderr: string }> {
  const child = spawn(process.execPath, [bin, ...args], { env: { ...process.env, SLUICE_API: url }, cwd: tmpdir() });
  child.stdin.end(stdin);
  const [stdout, stderr, [code]] = await Promise.all([
    child.stdout.setEncoding("utf8").toArray(),
    child.stderr.setEncoding("utf8").toArray(),
    once(child, "exit") as Promise<[number]>,
  ]);
  return { code, stdout: stdout.join(""), stderr: stderr.join("") };
}

for (const where of ["a file", "a folder"]) {
  if (where === "a folder" && !isLong) continue;
  test(`objects of a running gateway, its config in ${where}, change while a client stays connected, and survive a restart`, async (t) => {
    const folder = await mkdtemp(join(tmpdir(), "sluice-apply-"));
    t.after(() => rm(folder, { recursive: true }));
    const config = where === "a file" ? join(folder, "sluice.yaml") : folder;
    const main = join(folder, "sluice.yaml");
    await writeFile(main, [proxy(), pipeline("nobody"), api].join("---\n"));
    const gateway = await run(t, config);
    const call = (...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> =>
      sluice(gateway.api, args);

    const client = await mqtt.connectAsync(gateway.mqtt, { clientId: "stays", reconnectPeriod: 0 });
    t.after(() => client.end(true));
    let drops = 0;
    const received: string[] = [];
    client.on("close", () => drops++);
    client.on("message", (_, payload) => received.push(payload.toString()));
    await client.subscribeAsync("t", { qos: 1 });
    const banner = await mqtt.connectAsync(gateway.mqtt, { clientId: "banned", reconnectPeriod: 0 });
    t.after(() => banner.end(true));

    // Change one object: the plan, the version, and the effect.
    const change = await sluice(gateway.api, ["apply", "-f", "-", "--wait"], pipeline("banned"));
    assert.equal(change.code, 0, change.stderr);
    assert.match(
      change.stdout,
      /^~ change ConnectControl publish\/control \(bannedClients\)\n(?:.*\n)*version 2 runs\n/,
    );
    const closed = new Promise<void>((resolve) => void banner.once("close", () => resolve()));
    banner.publish("t", "no", { qos: 0 });
    await closed;
    await client.publishAsync("t", "one", { qos: 1 });

    // Create, and again: 409. A broken one changes nothing.
    const extra = join(folder, "extra.txt");
    await writeFile(extra, "kind: Pipeline\nname: extra\nfilters:\n  - {name: c, kind: ConnectControl}\n");
    assert.equal((await call("create", "-f", extra)).code, 0);
    const twice = await call("create", "-f", extra);
    assert.deepEqual([twice.code, /409: conflict name: extra/.test(twice.stderr)], [1, true]);
    const broken = await sluice(
      gateway.api,
      ["apply", "-f", "-"],
      pipeline("nobody").replace("bannedClients", "bannedClient"),
    );
    assert.equal(broken.code, 1);
    assert.match(broken.stderr, /answered 400: .*nothing was changed\n {2}.*bannedClient/);
    const needed = await call("delete", "pipeline", "publish");
    assert.deepEqual([needed.code, /answered 400/.test(needed.stderr)], [1, true]);
    assert.match((await call("get", "pl")).stdout, /^KIND .*\nPipeline +extra +ok.*\nPipeline +publish +ok/);
    assert.equal((await call("diff", "-f", extra)).code, 0);

    // Remove, roll back to before the removal.
    assert.equal((await call("delete", "pl", "extra")).code, 0);
    assert.equal((await call("get", "pl", "extra")).code, 1);
    const back = await call("rollback");
    assert.match(back.stdout, /^\+ build .*extra(?:.*\n)*version 5 runs\n/, back.stderr);
    const history = await call("history");
    assert.deepEqual(
      [...history.stdout.matchAll(/^(\d+) /gm)].map(([, version]) => version),
      ["5", "4", "3", "2", "1"],
    );

    await client.publishAsync("t", "two", { qos: 1 });
    assert.deepEqual([drops, received.filter((each) => each !== "no")], [0, ["one", "two"]]);

    // The files are the one truth: what was not changed stands there as it was written.
    const text = await readFile(main, "utf8");
    assert.ok(text.includes("# the door\n"));
    assert.ok(text.includes("host: ${DOOR_HOST:-127.0.0.1} # kept as it is written"));
    const names = (await readdir(folder)).filter((name) => name.endsWith(".yaml")).toSorted();
    assert.deepEqual(names, where === "a file" ? ["sluice.yaml"] : ["extra.yaml", "sluice.yaml"]);

    const before = (await call("get", "-o", "yaml")).stdout;
    const ended = once(gateway.process, "exit");
    gateway.process.kill("SIGTERM");
    await ended;
    const again = await run(t, config);
    assert.equal((await sluice(again.api, ["get", "-o", "yaml"])).stdout, before);
    assert.match(before, /bannedClients:\n +- banned\n/);
    assert.match(before, /name: extra\n/);
  });
}
