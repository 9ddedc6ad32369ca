/** The addresses of a proxy: several of them, unix sockets, and who a load balancer in front says it is. */
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, stat, writeFile } from "node:fs/promises";
import { connect as connectTcp, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite, test, type TestContext } from "node:test";
import { connect as connectTls } from "node:tls";
import { connectAsync, type MqttClient } from "mqtt";
import mqttPacket from "mqtt-packet";
import { generate } from "selfsigned";
import type { ConnectContext } from "../../kernel/plugin.ts";
import { eventually } from "../helpers/eventually.ts";
import { type ProbedGateway, startProbedGateway } from "../helpers/probed-gateway.ts";
import { binaryHeader } from "../helpers/proxy-header.ts";
import { openRawClient } from "../helpers/raw-client.ts";
import { spawnGateway } from "../helpers/spawned-gateway.ts";
import { frame, opcodes, openWebSocket } from "../helpers/web-socket.ts";

const host = "127.0.0.1";

async function temporary(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "sluice-listeners-"));
  t.after(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

const certificateOf = async (): Promise<object> => {
  const { cert, private: key } = await generate([{ name: "commonName", value: "localhost" }], { keyType: "ec" });
  return { name: "c", cert, key };
};

const connectBytes = mqttPacket.generate({
  cmd: "connect",
  protocolId: "MQTT",
  protocolVersion: 4,
  clientId: "c",
  clean: true,
  keepalive: 0,
});
const connack = Buffer.from([0x20, 2, 0, 0]);

const addressesSeen = (gateway: ProbedGateway<"Connect">): string[] =>
  gateway.probes.Connect.seen.map((ctx) => (ctx as ConnectContext).client.address);

suite("several listeners of one proxy", () => {
  test("share its clients and rules; status, health and metrics know them all", async (t) => {
    const folder = await temporary(t);
    const socket = join(folder, "mqtt.sock");
    const gateway = await startProbedGateway(t, {
      brokerMode: true,
      certificate: [await certificateOf()],
      listeners: [
        { name: "secure", protocol: "mqtts", host, port: 0 },
        { name: "web", protocol: "ws", host, port: 0, path: "/ws" },
        { name: "secure-web", protocol: "wss", host, port: 0 },
        { name: "sidecar", socket },
      ],
    });
    const port = gateway.listenerPort;
    const urls = [
      `mqtt://${host}:${gateway.port()}`,
      `mqtts://${host}:${port("secure")}`,
      `ws://${host}:${port("web")}/ws`,
      `wss://${host}:${port("secure-web")}/mqtt`,
      `mqtt+unix://${socket}`,
    ];
    const status = gateway.gateway.host.proxies.get("mqttproxy")?.status() as { listeners: { url: string }[] };
    const health = gateway.gateway.host.health().find(({ name }) => name === "mqttproxy");
    assert.deepEqual(
      status.listeners.map(({ url }) => url),
      urls,
    );
    assert.equal(health?.detail, urls.join(", "));
    const connect = (url: string, clientId: string): Promise<MqttClient> =>
      connectAsync(url, { clientId, rejectUnauthorized: false, reconnectPeriod: 0 });
    const clients = await Promise.all(urls.map((url, index) => connect(url, `c${index}`)));
    const got = clients.map(
      (client) => new Promise((resolve) => client.once("message", (_, payload) => resolve(String(payload)))),
    );
    await Promise.all(clients.map((client) => client.subscribeAsync("t", { qos: 1 })));
    assert.equal(await gateway.metric("sluice_connections"), 5);
    await clients[4]?.publishAsync("t", "to all", { qos: 1 });
    assert.deepEqual(await Promise.all(got), Array(5).fill("to all"));
    // A client that comes by another listener takes its own connection over.
    const closed = new Promise<void>((resolve) => clients[4]?.once("close", () => resolve()));
    const again = await connect(urls[2] ?? "", "c4");
    await closed;
    await Promise.all([...clients, again].map((client) => client.endAsync(true)));
  });

  test("the banner names each with its URL", async (t) => {
    const folder = await temporary(t);
    const file = join(folder, "sluice.yaml");
    const proxy = {
      kind: "MQTTProxy",
      name: "mqttproxy",
      listeners: [
        { name: "plain", host, port: 0 },
        { name: "web", protocol: "ws", host, port: 0 },
        { name: "sidecar", protocol: "ws", socket: "run.sock" },
      ],
    };
    await writeFile(
      file,
      [proxy, { kind: "AdminAPI", name: "api", port: 0 }].map((each) => JSON.stringify(each)).join("\n---\n"),
    );
    const gateway = await spawnGateway(file);
    t.after(() => gateway.stop());
    const lines = gateway
      .banner()
      .split("\n")
      .filter((line) => line.startsWith("mqttproxy listens on "));
    assert.match(
      lines.join("\n"),
      new RegExp(
        `^mqttproxy listens on mqtt://127.0.0.1:\\d+\nmqttproxy listens on ws://127.0.0.1:\\d+/mqtt\nmqttproxy listens on ws\\+unix://${join(folder, "run.sock")}:/mqtt$`,
      ),
    );
    const { status } = (await (await fetch(`${gateway.api}/apis/v2/status/objects/mqttproxy`)).json()) as {
      status: { listeners: { name: string; url: string }[] };
    };
    assert.deepEqual(
      status.listeners.map(({ url }) => `mqttproxy listens on ${url}`),
      lines,
    );
  });
});

suite("a unix socket", () => {
  test("has the permissions that were asked for, 0600 without, and is gone after the stop", async (t) => {
    const folder = await temporary(t);
    const [one, two] = [join(folder, "one.sock"), join(folder, "two.sock")];
    const gateway = await startProbedGateway(
      t,
      {
        listeners: [
          { name: "one", socket: one, mode: "0666" },
          { name: "two", socket: two },
        ],
      },
      { Connect: {} },
    );
    assert.deepEqual([(await stat(one)).mode & 0o777, (await stat(two)).mode & 0o777], [0o666, 0o600]);
    const socket = connectTcp(one);
    socket.write(connectBytes);
    assert.deepEqual((await once(socket, "data"))[0], connack);
    assert.deepEqual(addressesSeen(gateway), ["unix"]);
    socket.destroy();
    await gateway.stop();
    await assert.rejects(stat(one), { code: "ENOENT" });
  });

  test("speaks WebSocket too, and takes a PROXY header", async (t) => {
    const folder = await temporary(t);
    const path = join(folder, "ws.sock");
    const gateway = await startProbedGateway(
      t,
      { listeners: [{ name: "sidecar", protocol: "ws", socket: path, proxyProtocol: true }] },
      { Connect: {} },
    );
    const client = await openWebSocket(path, {
      protocols: "mqtt",
      before: "PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n",
    });
    client.socket.write(frame(opcodes.binary, connectBytes));
    assert.deepEqual(await client.bytes(4), connack);
    assert.deepEqual(addressesSeen(gateway), ["192.0.2.7"]);
    client.socket.destroy();
  });

  test("that a killed gateway left behind is taken; one that is in use, or any other file, is not", async (t) => {
    const folder = await temporary(t);
    const socket = join(folder, "mqtt.sock");
    const proxy = { listeners: [{ name: "sidecar", socket }] };
    const script = `require("node:net").createServer().listen(${JSON.stringify(socket)}, () => process.kill(process.pid, "SIGKILL"))`;
    await once(spawn(process.execPath, ["-e", script]), "exit");
    assert.ok((await stat(socket)).isSocket());
    const gateway = await startProbedGateway(t, proxy);
    const client = connectTcp(socket);
    client.write(connectBytes);
    assert.deepEqual((await once(client, "data"))[0], connack);
    client.destroy();
    await gateway.stop();

    const living = createServer().listen(socket);
    await once(living, "listening");
    await assert.rejects(startProbedGateway(t, proxy), {
      code: "LISTEN_FAILED",
      message: new RegExp(`can't listen on ${socket}: something listens on it; another process has it`),
    });
    await new Promise((resolve) => living.close(resolve));
    await writeFile(socket, "precious");
    await assert.rejects(
      startProbedGateway(t, proxy),
      /there is something else by this name; remove it, or set another path/,
    );
    assert.equal((await stat(socket)).size, 8);
    await rm(socket);
    await assert.rejects(
      startProbedGateway(t, { listeners: [{ name: "sidecar", socket: join(folder, "none/mqtt.sock") }] }),
      /its folder must exist, and this user must be allowed to write to it/,
    );
  });

  test("serves mosquitto's clients", async (t) => {
    if (spawnSync("mosquitto_pub", ["--version"]).error) {
      assert.ok(!process.env["CI"], "CI has the mosquitto clients");
      t.skip("there is no mosquitto_pub here");
      return;
    }
    const folder = await temporary(t);
    const socket = join(folder, "mqtt.sock");
    const gateway = await startProbedGateway(t, { listeners: [{ name: "sidecar", socket }] }, { Publish: {} });
    const publisher = spawn("mosquitto_pub", ["--unix", socket, "-t", "a/b", "-m", "x", "-q", "1"]);
    assert.deepEqual(await once(publisher, "exit"), [0, null]);
    assert.equal(gateway.probes.Publish.seen.length, 1);
  });
});

suite("the PROXY protocol", () => {
  const v1 = "PROXY TCP4 192.0.2.7 198.51.100.1 12345 1883\r\n";
  const v2 = binaryHeader({
    addresses: Buffer.from([203, 0, 113, 9, 198, 51, 100, 1, 1, 2, 7, 91, 0x04, 0, 3, 1, 2, 3]),
  });

  test("gives clients their addresses, whatever is spoken behind it and however it is cut", async (t) => {
    const gateway = await startProbedGateway(
      t,
      {
        proxyProtocol: true,
        certificate: [await certificateOf()],
        listeners: [
          { name: "secure", protocol: "mqtts", host, port: 0, proxyProtocol: true },
          { name: "web", protocol: "ws", host, port: 0, proxyProtocol: true },
          { name: "secure-web", protocol: "wss", host, port: 0, proxyProtocol: true },
          { name: "direct", host, port: 0 },
        ],
      },
      { Connect: {} },
    );
    const expected: string[] = [];
    const plain = async (port: number, pieces: (Buffer | string)[], address: string): Promise<void> => {
      const socket = connectTcp(port, host).setNoDelay(true);
      await once(socket, "connect");
      for (const piece of pieces) {
        socket.write(piece);
        await new Promise((resolve) => setImmediate(resolve));
      }
      assert.deepEqual((await once(socket, "data"))[0], connack);
      expected.push(address);
      socket.destroy();
    };
    await plain(gateway.port(), [v1, connectBytes], "192.0.2.7");
    await plain(gateway.port(), [Buffer.concat([v2, connectBytes])], "203.0.113.9");
    const all = Buffer.concat([v2, connectBytes]);
    for (let at = 1; at < all.length; at++)
      await plain(gateway.port(), [all.subarray(0, at), all.subarray(at)], "203.0.113.9");
    await plain(gateway.port(), ["PROXY UNKNOWN\r\n", connectBytes], host);
    await plain(gateway.listenerPort("direct"), [connectBytes], host);

    // TLS behind it: its first record in the same write as the header, and in one of its own.
    for (const isJoined of [true, false]) {
      const below = connectTcp(gateway.listenerPort("secure"), host);
      await once(below, "connect");
      if (isJoined) below.cork();
      below.write(v1);
      const secure = connectTls({ socket: below, rejectUnauthorized: false });
      process.nextTick(() => below.uncork());
      await once(secure, "secureConnect");
      secure.write(connectBytes);
      assert.deepEqual((await once(secure, "data"))[0], connack);
      expected.push("192.0.2.7");
      secure.destroy();
    }

    const web = await openWebSocket(gateway.listenerPort("web"), { protocols: "mqtt", before: v2 });
    web.socket.write(frame(opcodes.binary, connectBytes));
    assert.deepEqual(await web.bytes(4), connack);
    expected.push("203.0.113.9");
    web.socket.destroy();
    const below = connectTcp(gateway.listenerPort("secure-web"), host);
    below.write(v1);
    const secureWeb = await openWebSocket(0, { protocols: "mqtt", tls: { socket: below, rejectUnauthorized: false } });
    secureWeb.socket.write(frame(opcodes.binary, connectBytes));
    assert.deepEqual(await secureWeb.bytes(4), connack);
    expected.push("192.0.2.7");
    secureWeb.socket.destroy();

    assert.deepEqual(addressesSeen(gateway), expected);
  });

  test("its address is what connectionLimit counts", async (t) => {
    const gateway = await startProbedGateway(t, {
      proxyProtocol: true,
      connectionLimit: { requestRate: 1, timePeriod: 60 },
    });
    const codeFor = async (address: string): Promise<number | undefined> => {
      const socket = connectTcp(gateway.port(), host);
      socket.write(`PROXY TCP4 ${address} 198.51.100.1 1 2\r\n`);
      socket.write(connectBytes);
      const [answer] = (await once(socket, "data")) as [Buffer];
      socket.destroy();
      return answer[3];
    };
    assert.equal(await codeFor("192.0.2.1"), 0);
    assert.equal(await codeFor("192.0.2.1"), 3);
    const refused = () => gateway.logs.filter(({ msg }) => msg === "Refused").map(({ address }) => address);
    assert.deepEqual(refused(), ["192.0.2.1"]);
  });

  test("without a right header the connection is closed without a word, and counted", async (t) => {
    const gateway = await startProbedGateway(t, { proxyProtocol: true, handshakeTimeout: 1 });
    const wrong = [
      connectBytes,
      Buffer.from("PROXY TCP4 nonsense\r\n"),
      binaryHeader({ version: 1, addresses: Buffer.alloc(12) }),
    ];
    for (const bytes of wrong) {
      const client = await openRawClient(gateway.port());
      client.send(bytes);
      await client.expectClose(900);
    }
    const from = performance.now();
    const silent = await openRawClient(gateway.port());
    const halfway = await openRawClient(gateway.port());
    halfway.send(Buffer.from("PROXY TC"));
    const gone = await openRawClient(gateway.port());
    gone.destroy();
    await Promise.all([silent.expectClose(5000), halfway.expectClose(5000)]);
    assert.ok(performance.now() - from > 950);
    await eventually(() => gateway.metric("sluice_connects_refused_total", { reason: "proxyHeader" }), 6);
    assert.equal(await gateway.metric("sluice_packets_received_total"), 0);
  });
});
