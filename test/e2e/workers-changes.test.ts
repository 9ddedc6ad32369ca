/** Workers through changes of the config, crashes and stops: nothing that was acknowledged is lost, nobody is left behind. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { readdir, readFile, rm, writeFile } from "node:fs/promises";
import { connect as connectTcp } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import type { TLSSocket } from "node:tls";
import { connectAsync } from "mqtt";
import mqttPacket from "mqtt-packet";
import { createAuthority, issue } from "../helpers/certificates.ts";
import { createCrashPublisher, createCrashSubscriber } from "../helpers/crash-clients.ts";
import { eventually } from "../helpers/eventually.ts";
import { openRawClient, type RawClient } from "../helpers/raw-client.ts";
import { allRun, comeBack, gated, isAlive, startWorkers, type WorkersGateway } from "../helpers/workers.ts";

const proxy = (more = ""): string => `kind: MQTTProxy
name: mqttproxy
port: 0
rules: [{ when: { packetType: Publish }, pipeline: pub }]
${more}`;

const pipeline = (options = ""): string => `kind: Pipeline
name: pub
filters: [{ name: gated, kind: Gated${options} }]`;

const yaml = (options = "", more = ""): string => [proxy(more), pipeline(options)].join("\n---\n");

async function reload(gateway: WorkersGateway, text: string) {
  const from = gateway.process.logs.length;
  await gateway.write(text);
  gateway.process.signal("SIGHUP");
  const { msg } = await gateway.process.reloaded(from);
  return { msg, logs: gateway.process.logs.slice(from) };
}

test("QoS 2 from a client: a message in a worker's pipeline is not run again when it is sent anew to another", async (t) => {
  const gateway = await startWorkers(t, yaml(", gate: open"));
  const publish = (dup: boolean) =>
    ({ cmd: "publish", topic: "t", payload: "x", qos: 2, messageId: 7, dup, retain: false }) as const;
  const first = await gateway.connect(0, "dev", { clean: false });
  first.send(publish(false));
  await eventually(() => gated(gateway), ["0 of 2 t x"]);
  const second = await gateway.connect(1, "dev", { clean: false });
  await first.closed;
  second.send(publish(true));
  assert.deepEqual(await second.flush(), []);
  await writeFile(join(gateway.folder, "open"), "");
  assert.equal((await second.expect("pubrec")).messageId, 7);
  // Nor when its PUBREC is lost, and the client is back at the first.
  const third = await gateway.connect(0, "dev", { clean: false });
  third.send(publish(true));
  assert.equal((await third.expect("pubrec")).messageId, 7);
  third.send({ cmd: "pubrel", messageId: 7 });
  await third.expect("pubcomp");
  assert.deepEqual(await gated(gateway), ["0 of 2 t x"]);
  // The id means another message now.
  third.send(publish(false));
  await third.expect("pubrec");
  assert.deepEqual(await gated(gateway), ["0 of 2 t x", "0 of 2 t x"]);
});

test("a change: all workers take it or none does; connections stay", async (t) => {
  const gateway = await startWorkers(t, yaml());
  const clients = [await gateway.connect(0, "c0"), await gateway.connect(1, "c1")];
  const { process } = gateway;

  const bad = await reload(gateway, yaml(", failIn: 1"));
  assert.equal(bad.msg, "The config was not changed");
  const problem = bad.logs.find(({ where }) => typeof where === "string");
  assert.match(String(problem?.["where"]), /sluice\.yaml:\d+:\d+ > pub > gated/);
  assert.match(String(problem?.msg), /Gated can't be created: not in worker 1/);
  assert.equal(problem?.["code"], "FILTER_CREATE_FAILED");
  const broken = await reload(gateway, `${yaml()}\nnonsense: 1`);
  assert.equal(broken.msg, "The config was not changed");
  const other = await reload(gateway, yaml().replace("port: 0", `port: ${Number(new URL(process.api).port)}`));
  assert.equal(other.msg, "The config was not changed", "that port is the HTTP API's");
  for (const each of clients) await each.publish("t", "after the bad ones");
  assert.deepEqual(
    (await gated(gateway)).map((line) => line.slice(0, 6)),
    ["0 of 2", "1 of 2"],
  );

  const good = await reload(gateway, yaml("", "listeners: [{ name: second, port: 0 }]"));
  assert.equal(good.msg, "The config has changed");
  const ports = await gateway.api("/status/objects/mqttproxy");
  assert.match(JSON.stringify(ports.body), /second/);
  for (const each of clients) await each.publish("t", "after the good one");
  const more = [await gateway.connect(0, "c2"), await gateway.connect(1, "c3")];
  for (const each of [...clients, ...more]) assert.deepEqual(await each.flush(), []);

  const restart = await reload(gateway, yaml());
  assert.equal(restart.msg, "The config has changed");
  const text = await readFile(join(gateway.folder, "sluice.yaml"), "utf8");
  await writeFile(join(gateway.folder, "sluice.yaml"), text.replace("workers: 2", "workers: 3"));
  const from = process.logs.length;
  process.signal("SIGHUP");
  assert.equal((await process.reloaded(from)).msg, "The config was not changed");
  assert.ok(process.logs.slice(from).some(({ code }) => code === "RESTART_NEEDED"));
  for (const each of [...clients, ...more]) assert.deepEqual(await each.flush(), []);
});

test("a worker that is killed: others go on, its clients come back to their sessions, it is started again", async (t) => {
  const gateway = await startWorkers(t, "kind: MQTTProxy\nname: mqttproxy\nport: 0\nbrokerMode: true");
  const { port } = gateway.process;
  const publishers = [createCrashPublisher("p1", 1), createCrashPublisher("p2", 2), createCrashPublisher("p3", 1)];
  const subscribers = [createCrashSubscriber("s1", 1), createCrashSubscriber("s2", 2)];
  const [stay, keeps] = [await gateway.connect(0, "stay"), await gateway.connect(1, "keeps", { clean: false })];
  await keeps.subscribe("cmd", 1);
  for (const each of subscribers) await each.connect(port);
  for (const each of publishers) await each.connect(port);
  const all = [...publishers, ...subscribers];
  const killed: number[] = [];
  for (let round = 1; round <= 2; round++) {
    const acked = publishers.map((each) => each.acked.size);
    await eventually(() => publishers.every((each, n) => each.acked.size > (acked[n] ?? 0) + 200), true);
    // The second worker, each time.
    const pid = (await gateway.pids()).at(-1) ?? 0;
    killed.push(pid);
    const from = gateway.process.logs.length;
    process.kill(pid, "SIGKILL");
    await gateway.process.logged(
      ({ msg }) => msg === "A worker has ended; its clients connect again, to the others",
      from,
    );
    // Devices come back by themselves; those whose worker lives do no harm by it.
    for (const each of all) await comeBack(each, port);
    await gateway.process.logged(({ msg }) => msg === "A worker runs again", from);
    await allRun(gateway);
  }
  await Promise.all(publishers.map((each) => each.finish()));
  const published = publishers.flatMap((each) => [...each.acked]);
  for (const each of subscribers) {
    await eventually(() => published.filter((payload) => !each.got.has(payload)).length, 0);
    assert.deepEqual(each.doubles, []);
  }
  assert.deepEqual(await stay.flush(), [], "a client of the other worker has noticed nothing");
  const back = await gateway.connect(0, "keeps", { clean: false });
  await stay.publish("cmd", "x");
  assert.equal((await back.expect("publish")).payload.toString(), "x");
  assert.equal(await gateway.metric("sluice_worker_restarts_total"), 2);
  const pids = await gateway.pids();
  assert.equal(killed.filter((pid) => pids.includes(pid)).length, 0);
  for (const each of all) each.destroy();
});

test("a worker killed under QoS 1 load into a file: every record that was acknowledged is there", async (t) => {
  const gateway = await startWorkers(
    t,
    [
      proxy(),
      "kind: Pipeline\nname: pub\nfilters: [{ name: file, kind: FileMQTT, dir: ./data, topic: { default: t } }]",
    ].join("\n---\n"),
  );
  const publishers = ["a", "b", "c", "d"].map((id) => createCrashPublisher(id, 1));
  for (const each of publishers) await each.connect(gateway.process.port);
  await eventually(() => publishers.every(({ acked }) => acked.size > 300), true);
  const [first = 0] = await gateway.pids();
  process.kill(first, "SIGKILL");
  await allRun(gateway, 2);
  for (const each of publishers) await comeBack(each, gateway.process.port);
  await Promise.all(publishers.map((each) => each.finish()));
  for (const each of publishers) each.destroy();
  const folder = join(gateway.folder, "data");
  const files = (await readdir(folder, { recursive: true })).filter((file) => file.endsWith(".ndjson"));
  assert.ok(files.length > 1, `each worker has files of its own: ${files.join(", ")}`);
  const texts = await Promise.all(files.map((file) => readFile(join(folder, file), "utf8")));
  const written = new Set<string>();
  for (const line of texts.join("").split("\n").filter(Boolean)) {
    written.add((JSON.parse(line) as { value: string }).value);
  }
  const acked = publishers.flatMap((each) => [...each.acked]);
  assert.ok(acked.length > 1200);
  assert.deepEqual(
    acked.filter((payload) => !written.has(payload)),
    [],
  );
});

test("TLS, WebSockets and unix sockets end in the workers; a new certificate is every worker's, and closes nothing", async (t) => {
  const certificates = await Promise.all(
    ["old.example", "new.example"].map(async (cn) => {
      const authority = await createAuthority(cn);
      return issue(authority, { cn });
    }),
  );
  const listeners = (at: number): string =>
    yaml(
      "",
      `listeners:
  - { name: tls, port: 0, protocol: mqtts, certificate: [{ name: c, certFile: c.pem, keyFile: k.pem }] }
  - { name: ws, port: 0, protocol: ws }
  - { name: unix, socket: ./mqtt.sock }
retryInterval: ${10 + at}`,
    );
  const files = async (folder: string, at: number): Promise<void> => {
    await writeFile(join(folder, "c.pem"), certificates[at]?.cert ?? "");
    await writeFile(join(folder, "k.pem"), certificates[at]?.key ?? "");
  };
  const gateway = await startWorkers(t, listeners(0), "workers: 2", (folder) => files(folder, 0));
  const portOf = (name: string): number =>
    Number(new RegExp(`${name}://127\\.0\\.0\\.1:(\\d+)`).exec(gateway.process.banner())?.[1]);
  const subject = (client: RawClient): unknown => (client.socket as TLSSocket).getPeerCertificate().subject.CN;
  const dial = async (clientId: string): Promise<RawClient> => {
    const client = await openRawClient(portOf("mqtts"), { tls: { rejectUnauthorized: false } });
    await client.connect({ clientId });
    return client;
  };
  const before = await Promise.all(["a", "b", "c", "d"].map(dial));
  assert.deepEqual(new Set(before.map(subject)), new Set(["old.example"]));
  const web = await connectAsync(`ws://127.0.0.1:${portOf("ws")}/mqtt`, { reconnectPeriod: 0 });
  await web.publishAsync("t", "by WebSocket", { qos: 1 });
  const local = connectTcp(join(gateway.folder, "mqtt.sock"));
  local.write(
    mqttPacket.generate({
      cmd: "connect",
      protocolId: "MQTT",
      protocolVersion: 4,
      clientId: "u",
      clean: true,
      keepalive: 0,
    }),
  );
  const [connack] = (await once(local, "data")) as [Buffer];
  assert.deepEqual([...connack], [0x20, 2, 0, 0]);
  local.destroy();
  await files(gateway.folder, 1);
  assert.equal((await reload(gateway, listeners(1))).msg, "The config has changed");
  const after = await Promise.all(["e", "f", "g", "h"].map(dial));
  assert.deepEqual(new Set(after.map(subject)), new Set(["new.example"]));
  for (const each of [...before, ...after]) await each.publish("t", "x");
  await web.endAsync();
});

test("filters' health is that of all workers, and of the workers themselves", async (t) => {
  const gateway = await startWorkers(t, yaml());
  assert.equal((await gateway.readyz()).status, 200);
  await writeFile(join(gateway.folder, "ill-1"), "");
  await eventually(async () => (await gateway.readyz()).text.includes("worker 1: gated"), true);
  await rm(join(gateway.folder, "ill-1"));
  await eventually(async () => (await gateway.readyz()).status, 200);
});

test("a start that a worker can't make ends with the place, and leaves no process", async (t) => {
  await assert.rejects(startWorkers(t, yaml(", failIn: 1")), (error: Error) => {
    assert.match(error.message, /the gateway has ended/);
    assert.match(error.message, /sluice\.yaml:\d+:\d+ > pub > gated: Gated can't be created: not in worker 1/);
    return true;
  });
});

test("SIGTERM stops all; a main process that is killed takes its workers with it", async (t) => {
  const gateway = await startWorkers(t, yaml());
  const clients = [await gateway.connect(0, "c0"), await gateway.connect(1, "c1")];
  const pids = await gateway.pids();
  assert.equal(pids.length, 2);
  // As a service manager does, which signals every process: workers do what the main process says.
  for (const pid of pids) process.kill(pid, "SIGTERM");
  for (const each of clients) await each.publish("t", "x");
  assert.equal(await gateway.process.stop(), 0);
  for (const each of clients) await each.closed;
  await eventually(async () => (await Promise.all(pids.map(isAlive))).some(Boolean), false);

  const other = await startWorkers(t, yaml());
  const left = await other.pids();
  other.process.signal("SIGKILL");
  await eventually(async () => (await Promise.all(left.map(isAlive))).some(Boolean), false);
});
