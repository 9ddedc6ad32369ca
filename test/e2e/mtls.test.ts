/** Client certificates: who gets in by one, as whom, and what a change of the authorities does to whom. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { before, suite, test, type TestContext } from "node:test";
import { connect as connectTls, type ConnectionOptions, type TLSSocket } from "node:tls";
import { connectAsync } from "mqtt";
import type { ConnectContext } from "../../kernel/plugin.ts";
import { createAuthority, type Identity, issue } from "../helpers/certificates.ts";
import { eventually } from "../helpers/eventually.ts";
import { type ProbedGateway, startProbedGateway, toYaml } from "../helpers/probed-gateway.ts";
import { openRawClient, type RawClient } from "../helpers/raw-client.ts";
import { outcomes, spawnGateway } from "../helpers/spawned-gateway.ts";

let server: Identity;
let other: Identity;
let ca: Identity;
let strangers: Identity;
let device: Identity;
let stranger: Identity;
before(async () => {
  [ca, strangers] = await Promise.all([createAuthority("Devices"), createAuthority("Strangers")]);
  [server, other, device, stranger] = await Promise.all([
    issue(ca, { cn: "one.example", altNames: [{ type: 2, value: "one.example" }] }),
    issue(ca, { cn: "two.example", altNames: [{ type: 2, value: "two.example" }] }),
    issue(ca, { cn: "device-1", altNames: [{ type: 6, value: "urn:device:1" }] }),
    issue(strangers, { cn: "device-1" }),
  ]);
});

const proxy = (more: object = {}): object => ({
  useTLS: true,
  certificate: [
    { name: "one", ...server },
    { name: "two", ...other },
  ],
  clientCA: ca.cert,
  ...more,
});

const open = (port: number, identity: Identity | undefined, more: ConnectionOptions = {}): Promise<RawClient> =>
  openRawClient(port, { tls: { rejectUnauthorized: false, ...identity, ...more } });

/** In TLS 1.3 a client learns that it was turned away only after its own part is done. */
async function isLetIn(port: number, identity: Identity | undefined, more: ConnectionOptions = {}): Promise<boolean> {
  let client: RawClient | undefined;
  try {
    client = await open(port, identity, more);
    await client.connect({ clientId: "c" });
    return true;
  } catch {
    return false;
  } finally {
    client?.destroy();
  }
}

/** To resume, by the tickets that have come so far. */
function sessionOf({ socket }: RawClient): Buffer {
  const session = (socket as TLSSocket).getSession();
  assert.ok(session);
  return session;
}

const connects = (gateway: ProbedGateway<"Connect">): ConnectContext[] =>
  gateway.probes.Connect.seen.map((ctx) => ctx as ConnectContext);

suite("a listener that requires client certificates", () => {
  for (const maxVersion of ["TLSv1.2", "TLSv1.3"] as const) {
    for (const servername of ["one.example", "two.example", "unknown.example"]) {
      test(`lets in who has one of its clientCA, and nobody else (${maxVersion}, ${servername})`, async (t) => {
        const gateway = await startProbedGateway(t, proxy(), { Connect: {} });
        const how = { maxVersion, servername };
        assert.equal(await isLetIn(gateway.port(), undefined, how), false);
        assert.equal(await isLetIn(gateway.port(), stranger, how), false);
        const old = await issue(ca, { cn: "old", notBeforeDate: new Date(2020, 0), notAfterDate: new Date(2021, 0) });
        assert.equal(await isLetIn(gateway.port(), old, how), false);
        assert.equal(connects(gateway).length, 0);
        assert.equal(await gateway.metric("sluice_connects_refused_total", { reason: "handshake" }), 3);
        assert.equal(await isLetIn(gateway.port(), device, how), true);
        assert.equal(connects(gateway)[0]?.client.certificate?.subject, "CN=device-1");
      });
    }
  }

  test("hands filters the certificate on a resumed session too", async (t) => {
    const gateway = await startProbedGateway(t, proxy(), { Connect: {} });
    for (const maxVersion of ["TLSv1.2", "TLSv1.3"] as const) {
      const first = await open(gateway.port(), device, { maxVersion });
      await first.connect({ clientId: "first" });
      const session = sessionOf(first);
      const second = await open(gateway.port(), device, { maxVersion, session });
      assert.equal((second.socket as TLSSocket).isSessionReused(), true);
      await second.connect({ clientId: "second" });
      first.destroy();
      second.destroy();
    }
    assert.deepEqual(
      connects(gateway).map(({ client }) => client.certificate?.subject),
      Array(4).fill("CN=device-1"),
    );
  });

  test("the same over WebSocket; a listener of the proxy may ask for less", async (t) => {
    const gateway = await startProbedGateway(
      t,
      proxy({
        usernameFrom: "cn",
        listeners: [
          { name: "web", protocol: "wss", host: "127.0.0.1", port: 0 },
          { name: "open", protocol: "wss", host: "127.0.0.1", port: 0, clientCertificate: "none" },
          { name: "plain", host: "127.0.0.1", port: 0 },
        ],
      }),
      { Connect: {} },
    );
    const url = (name: string): string => `wss://127.0.0.1:${gateway.listenerPort(name)}/mqtt`;
    const how = { reconnectPeriod: 0, rejectUnauthorized: false, username: "said", connectTimeout: 2000 };
    await assert.rejects(connectAsync(url("web"), how));
    for (const client of [
      await connectAsync(url("web"), { ...how, ...device }),
      await connectAsync(url("open"), how),
      await connectAsync(`mqtt://127.0.0.1:${gateway.listenerPort("plain")}`, how),
    ])
      await client.endAsync();
    assert.deepEqual(
      connects(gateway).map(({ client }) => [client.username, client.certificate?.subject]),
      [
        ["device-1", "CN=device-1"],
        ["said", undefined],
        ["said", undefined],
      ],
    );
  });
});

test("an optional certificate: without one a client is nobody in particular, with a wrong one it is refused", async (t) => {
  const gateway = await startProbedGateway(t, proxy({ clientCertificate: "optional", usernameFrom: "cn" }), {
    Connect: {},
  });
  assert.equal(await isLetIn(gateway.port(), undefined), true);
  assert.equal(await isLetIn(gateway.port(), stranger), false);
  assert.equal(await isLetIn(gateway.port(), device), true);
  assert.deepEqual(
    connects(gateway).map(({ client }) => client.certificate?.subject),
    [undefined, "CN=device-1"],
  );
});

test("usernameFrom: the certificate's name counts, not the CONNECT's, for filters and sessions alike", async (t) => {
  const cases: [from: string, identity: Identity, username: string | undefined][] = [
    ["none", device, "said"],
    ["cn", device, "device-1"],
    ["san", device, "urn:device:1"],
    [
      "san",
      await issue(ca, {
        cn: "x",
        altNames: [
          { type: 2, value: "a.example" },
          { type: 2, value: "b" },
        ],
      }),
      "a.example",
    ],
    [
      "san",
      await issue(ca, { cn: "x", altNames: [{ type: 6, value: 'urn:a, DNS:admin "x"' }] }),
      'urn:a, DNS:admin "x"',
    ],
    ["san", await issue(ca, { cn: "x", altNames: [{ type: 7, ip: "192.0.2.1" }] }), "192.0.2.1"],
    ["cn", await issue(ca, { cn: "Grüße" }), "Grüße"],
    // With two common names it is not said which one counts.
    ["cn", await issue(ca, { cn: "a, CN=admin" }), undefined],
    // Whoever has no name of this sort is not let in under one of its choice.
    ["cn", await issue(ca, { altNames: [{ type: 2, value: "a.example" }] }), undefined],
    ["san", await issue(ca, { cn: "x" }), undefined],
  ];
  for (const [usernameFrom, identity, username] of cases) {
    const gateway = await startProbedGateway(t, proxy({ usernameFrom }), { Connect: {} });
    const client = await open(gateway.port(), identity);
    client.send({ cmd: "connect", clientId: "c", clean: true, username: "said", password: Buffer.from("p") });
    if (username === undefined) {
      await client.closed;
      assert.equal(connects(gateway).length, 0);
      assert.equal(await gateway.metric("sluice_connects_refused_total", { reason: "handshake" }), 1);
    } else {
      await client.expect("connack");
      const [ctx] = connects(gateway);
      assert.deepEqual([ctx?.client.username, ctx?.packet.username], [username, username]);
      const sessions = await gateway.gateway.host.proxies.get("mqttproxy")?.sessions.query();
      assert.equal(sessions?.[0]?.username, username);
    }
    client.destroy();
    await gateway.stop();
  }
});

test("a change that is not about TLS leaves clients their sessions", async (t) => {
  const documents = (more: object): string =>
    toYaml([{ kind: "MQTTProxy", name: "mqttproxy", host: "127.0.0.1", port: 0, ...proxy(more) }]);
  const gateway = await startProbedGateway(t, proxy());
  const first = await open(gateway.port(), device);
  await first.connect({ clientId: "first" });
  const session = sessionOf(first);
  const isReused = async (): Promise<boolean> => {
    const client = await open(gateway.port(), device, { session });
    await client.connect({ clientId: "again" });
    const isSessionReused = (client.socket as TLSSocket).isSessionReused();
    client.destroy();
    return isSessionReused;
  };
  await gateway.reload(
    documents({ maxPacketBytes: 1000, maxInflight: 5, listeners: [{ name: "x", host: "127.0.0.1", port: 0 }] }),
  );
  assert.equal(await isReused(), true);
  await gateway.reload(documents({ handshakeTimeout: 5 }));
  assert.equal(await isReused(), false);
  first.destroy();
});

suite("a change of the authorities", () => {
  test("is for new handshakes, resumed sessions included; who is connected stays", async (t) => {
    const documents = (clientCA: string): string =>
      toYaml([{ kind: "MQTTProxy", name: "mqttproxy", host: "127.0.0.1", port: 0, ...proxy({ clientCA }) }]);
    const gateway = await startProbedGateway(t, proxy(), {});
    await gateway.reload(documents(ca.cert));
    const client = await open(gateway.port(), device);
    await client.connect({ clientId: "stays" });
    const session = sessionOf(client);
    assert.equal(await isLetIn(gateway.port(), stranger), false);
    const { plan, problems } = await gateway.reload(documents(strangers.cert));
    assert.deepEqual(problems, []);
    const change = plan?.items.find(({ action }) => action === "change");
    assert.deepEqual([change?.fields, change?.notes], [["clientCA"], ["for new connections: clientCA"]]);
    assert.equal(await isLetIn(gateway.port(), stranger), true);
    assert.equal(await isLetIn(gateway.port(), device), false);
    assert.equal(await isLetIn(gateway.port(), device, { session }), false);
    await client.publish("a/b");
    // Both, in one bundle.
    await gateway.reload(documents(`${strangers.cert}\n${ca.cert}`));
    assert.equal(await isLetIn(gateway.port(), stranger), true);
    assert.equal(await isLetIn(gateway.port(), device), true);
    await client.publish("a/b");
    client.destroy();
  });

  test("in its file is seen and taken; one that can't be read is refused with file and line, and the old stays", async (t: TestContext) => {
    const folder = await mkdtemp(join(tmpdir(), "sluice-mtls-"));
    t.after(() => rm(folder, { recursive: true }));
    const file = join(folder, "sluice.yaml");
    const bundle = join(folder, "ca.pem");
    await writeFile(join(folder, "tls.crt"), server.cert);
    await writeFile(join(folder, "tls.key"), server.key);
    await writeFile(bundle, ca.cert);
    await writeFile(
      file,
      "kind: MQTTProxy\nname: mqttproxy\nhost: 127.0.0.1\nport: 0\nuseTLS: true\n" +
        "certificate: [{ name: c, certFile: tls.crt, keyFile: tls.key }]\nclientCAFile: ca.pem\n" +
        "---\nkind: AdminAPI\nname: api\nport: 0\n",
    );
    const gateway = await spawnGateway(file);
    t.after(() => gateway.stop());
    const client = await open(gateway.port, device);
    await client.connect({ clientId: "stays" });
    let from = gateway.logs.length;
    await writeFile(bundle, ca.cert.replace(/^M/m, "!"));
    assert.equal((await gateway.reloaded(from)).msg, outcomes[2]);
    const problem = gateway.logs.slice(from).find(({ where }) => where !== undefined);
    assert.match(String(problem?.["where"]), /sluice\.yaml:7:1 > mqttproxy > clientCAFile$/);
    assert.match(String(problem?.msg), /is not a certificate that can be read/);
    assert.equal(await isLetIn(gateway.port, device), true);
    from = gateway.logs.length;
    await writeFile(bundle, strangers.cert);
    assert.deepEqual((await gateway.reloaded(from))["changed"], [
      "change MQTTProxy mqttproxy (clientCA; for new connections: clientCA)",
    ]);
    assert.equal(await isLetIn(gateway.port, device), false);
    assert.equal(await isLetIn(gateway.port, stranger), true);
    await client.publish("a/b");
    client.destroy();
  });
});

test("a client that never shows its certificate is closed in time, and harms nobody", async (t) => {
  const gateway = await startProbedGateway(t, proxy({ handshakeTimeout: 1 }));
  const silent = await openRawClient(gateway.port());
  const socket = connectTls({ port: gateway.port(), host: "127.0.0.1", rejectUnauthorized: false, ...device });
  await once(socket, "secureConnect");
  await silent.expectClose(5000);
  await eventually(() => gateway.metric("sluice_connects_refused_total", { reason: "handshake" }), 1);
  socket.destroy();
});
