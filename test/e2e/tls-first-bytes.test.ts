/** TLS begins with the first bytes of a connection, however they come, and keeps no large buffer for an idle one. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { before, test } from "node:test";
import { connect as connectTls, type TLSSocket } from "node:tls";
import { connectAsync } from "mqtt";
import { createAuthority, type Identity, issue } from "../helpers/certificates.ts";
import { startProbedGateway } from "../helpers/probed-gateway.ts";
import { spawnGateway } from "../helpers/spawned-gateway.ts";

let authority: Identity;
let identity: Identity;
before(async () => {
  authority = await createAuthority("authority");
  identity = await issue(authority, { cn: "localhost" });
});

/** Passes on what clients send a few bytes at a time, each lot in a turn of its own. */
async function startDribbling(port: number, bytes: number): Promise<{ port: number; close(): void }> {
  const sockets = new Set<Socket>();
  const server = createServer({ noDelay: true }, (from) => {
    const to = connect({ host: "127.0.0.1", port, noDelay: true });
    const pending: Buffer[] = [];
    let left = 600;
    const next = (): void => {
      const chunk = pending.shift();
      if (!chunk) return;
      const size = left > 0 ? bytes : chunk.length;
      left--;
      to.write(chunk.subarray(0, size));
      if (chunk.length > size) pending.unshift(chunk.subarray(size));
      setImmediate(next);
    };
    from.on("data", (chunk: Buffer) => {
      if (pending.push(chunk) === 1) setImmediate(next);
    });
    to.pipe(from);
    for (const socket of [from, to]) {
      sockets.add(socket);
      socket.on("error", () => socket.destroy());
      socket.on("close", () => [from, to].forEach((each) => each.destroy()));
    }
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    port: (server.address() as AddressInfo).port,
    close() {
      server.close();
      for (const socket of sockets) socket.destroy();
    },
  };
}

for (const maxVersion of ["TLSv1.2", "TLSv1.3"] as const) {
  test(`a handshake that comes a few bytes at a time, and a large message behind it (${maxVersion})`, async (t) => {
    const certificate = [{ name: "one", ...identity }];
    const { port } = await startProbedGateway(t, { useTLS: true, certificate, brokerMode: true });
    const relay = await startDribbling(port(), 5);
    t.after(() => relay.close());
    // Handed on to node:tls, and not among the options that mqtt declares.
    const tls = { checkServerIdentity: () => undefined, maxVersion };
    const client = await connectAsync({
      protocol: "mqtts",
      host: "127.0.0.1",
      port: relay.port,
      ca: authority.cert,
      ...tls,
      reconnectPeriod: 0,
    });
    const payload = "x".repeat(200_000);
    const arrived = new Promise<string>((resolve) => client.on("message", (_, bytes) => resolve(String(bytes))));
    await client.subscribeAsync("a/b", { qos: 1 });
    await client.publishAsync("a/b", payload, { qos: 1 });
    assert.equal(await arrived, payload);
    await client.endAsync();
  });
}

test("an idle TLS connection keeps no buffer of 64 KiB", { skip: process.platform !== "linux" }, async (t) => {
  const folder = await mkdtemp(join(tmpdir(), "sluice-tls-"));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const file = join(folder, "sluice.yaml");
  const [cert, key] = [JSON.stringify(identity.cert), JSON.stringify(identity.key)];
  await writeFile(
    file,
    `kind: MQTTProxy
name: mqttproxy
host: 127.0.0.1
port: 0
connectTimeout: 60
useTLS: true
certificate: [{ name: one, cert: ${cert}, key: ${key} }]
---
kind: AdminAPI
name: admin-api
port: 0
`,
  );
  const gateway = await spawnGateway(file, ["--no-watch"]);
  const sockets: TLSSocket[] = [];
  t.after(async () => {
    for (const socket of sockets) socket.destroy();
    await gateway.stop();
  });
  const open = async (count: number): Promise<void> => {
    for (let left = count; left > 0; left -= 20) {
      const some = Array.from({ length: 20 }, () =>
        connectTls({ host: "127.0.0.1", port: gateway.port, ca: authority.cert, checkServerIdentity: () => undefined }),
      );
      sockets.push(...some);
      await Promise.all(some.map((socket) => once(socket, "secureConnect")));
    }
  };
  await open(100);
  const bytesBefore = heapBytes(gateway.pid);
  await open(300);
  const each = (heapBytes(gateway.pid) - bytesBefore) / 300;
  // About 35 KiB; with the buffers it is about 100.
  assert.ok(each < 64 * 1024, `${(each / 1024).toFixed(1)} KiB each`);
});

/** Of the process' own heap, where OpenSSL's memory is and JavaScript's is not; untouched pages count. */
function heapBytes(pid: number): number {
  const line = readFileSync(`/proc/${pid}/maps`, "latin1")
    .split("\n")
    .find((each) => each.endsWith("[heap]"));
  const [from = 0, to = 0] = (line ?? "")
    .split(" ", 1)[0]!
    .split("-")
    .map((hex) => Number.parseInt(hex, 16));
  return to - from;
}
