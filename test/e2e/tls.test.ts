/** TLS listeners: certificates by server name, deadlines, what is no TLS. */
import assert from "node:assert/strict";
import { createServer, type AddressInfo } from "node:net";
import { before, suite, test } from "node:test";
import type { TLSSocket } from "node:tls";
import { connectAsync } from "mqtt";
import { generate } from "selfsigned";
import { eventually } from "../helpers/eventually.ts";
import { startProbedGateway } from "../helpers/probed-gateway.ts";
import { openRawClient } from "../helpers/raw-client.ts";

interface Certificate {
  readonly name: string;
  readonly cert: string;
  readonly key: string;
}

async function makeCertificate(host: string): Promise<Certificate> {
  const pems = await generate([{ name: "commonName", value: host }], {
    keyType: "ec",
    extensions: [{ name: "subjectAltName", altNames: [{ type: 2, value: host }] }],
  });
  return { name: host, cert: pems.cert, key: pems.private };
}

let one: Certificate;
let two: Certificate;
before(async () => {
  [one, two] = await Promise.all([makeCertificate("one.example"), makeCertificate("*.two.example")]);
});

const tlsProxy = (): object => ({ useTLS: true, certificate: [one, two] });

test("TLS: the certificate is chosen by the server name that the client asks for; the first serves all others", async (t) => {
  const { port } = await startProbedGateway(t, tlsProxy());
  const cases: [servername: string | undefined, ca: Certificate][] = [
    ["one.example", one],
    ["a.two.example", two],
    ["unknown.example", one],
    [undefined, one],
  ];
  for (const [servername, { cert, name }] of cases) {
    const client = await openRawClient(port(), {
      tls: { ca: cert, checkServerIdentity: () => undefined, ...(servername !== undefined && { servername }) },
    });
    assert.equal((client.socket as TLSSocket).getPeerCertificate().subject.CN, name);
    await client.connect({ clientId: "tls" });
    await client.publish("a/b");
    await client.disconnect();
  }
  await assert.rejects(openRawClient(port(), { tls: { ca: two.cert, servername: "one.example" } }));
});

test("TLS: a client library connects, publishes and is delivered to", async (t) => {
  const { port } = await startProbedGateway(t, { ...tlsProxy(), brokerMode: true });
  const client = await connectAsync({
    protocol: "mqtts",
    host: "127.0.0.1",
    port: port(),
    ca: two.cert,
    servername: "b.two.example",
    reconnectPeriod: 0,
  });
  const arrived = new Promise<string>((resolve) => client.on("message", (_, payload) => resolve(String(payload))));
  await client.subscribeAsync("a/b", { qos: 1 });
  await client.publishAsync("a/b", "x".repeat(500_000), { qos: 1 });
  assert.equal((await arrived).length, 500_000);
  await client.endAsync();
});

suite("deadlines and strangers", { concurrency: true }, () => {
  test("TLS: a handshake that does not end within handshakeTimeout is closed", async (t) => {
    const { port, metric } = await startProbedGateway(t, { ...tlsProxy(), handshakeTimeout: 1 });
    const from = performance.now();
    const silent = await openRawClient(port());
    const halfway = await openRawClient(port());
    // The head of a ClientHello record, and no more.
    halfway.send(Buffer.from([0x16, 3, 1, 2, 0, 1, 0]));
    await Promise.all([silent.expectClose(5000), halfway.expectClose(5000)]);
    const took = performance.now() - from;
    assert.ok(took > 950, `closed after ${took} ms`);
    await eventually(() => metric("sluice_connects_refused_total", { reason: "handshake" }), 2);
  });

  test("TLS: CONNECT has its deadline after the handshake", async (t) => {
    const { port } = await startProbedGateway(t, { ...tlsProxy(), connectTimeout: 1 });
    const client = await openRawClient(port(), { tls: { ca: one.cert, servername: "one.example" } });
    await client.expectClose(5000);
  });

  test("TLS: plain MQTT on a TLS port, and TLS on a plain one, end the connection and harm nobody", async (t) => {
    const gateway = await startProbedGateway(t, tlsProxy(), {}, [
      { kind: "MQTTProxy", name: "plain", host: "127.0.0.1", port: 0 },
    ]);
    const plain = await openRawClient(gateway.port());
    plain.send({ cmd: "connect", clientId: "plain", clean: true });
    await plain.closed;
    assert.ok(plain.received.length === 0);
    await assert.rejects(openRawClient(gateway.port("plain"), { tls: { ca: one.cert } }));
    const client = await openRawClient(gateway.port(), { tls: { ca: one.cert, servername: "one.example" } });
    await client.connect();
  });
});

test("A16: a certificate that is missing, is none or belongs to another key stops the start", async (t) => {
  const start = (certificate: object[]) => startProbedGateway(t, { useTLS: true, certificate });
  await assert.rejects(start([]), /certificate/);
  await assert.rejects(start([{ name: "bad", cert: "balabala", key: "keyForbalabala" }]), /PEM/);
  await assert.rejects(start([{ ...one, key: two.key }]), /key/);
});

test("A16: a port in use stops the start, and leaves nothing open", async (t) => {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await assert.rejects(startProbedGateway(t, { port }), {
    code: "LISTEN_FAILED",
    message: /^sluice\.yaml:\d+:3 > mqttproxy > port: can't listen on 127\.0\.0\.1:\d+: .*another process has it/,
  });
  await new Promise((resolve) => server.close(resolve));
  const gateway = await startProbedGateway(t, { port });
  assert.equal(gateway.port(), port);
});
