/** Addresses that are shared, and what their listeners hold on to: without a gateway around them. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import type { Duplex } from "node:stream";
import { test, type TestContext } from "node:test";
import { type Claim, createAddresses } from "../../kernel/addresses.ts";
import { createGate, createListener, type ListenerOwner } from "../../kernel/listener.ts";
import type { ListenerSpec, TcpAddress } from "../../kernel/spec.ts";
import { eventually } from "../helpers/eventually.ts";

const anyPort = { host: "127.0.0.1", port: 0 };

async function dial(t: TestContext, port: number): Promise<Socket> {
  const socket = connect(port, "127.0.0.1");
  t.after(() => socket.destroy());
  socket.on("error", () => undefined);
  await once(socket, "connect");
  return socket;
}

/** Keeps what it is given, by the ports of the other end. */
function createAcceptor(t: TestContext): { ports: (number | undefined)[]; acceptor: Parameters<Claim["open"]>[0] } {
  const ports: (number | undefined)[] = [];
  const acceptor = {
    onSocket(socket: Socket) {
      ports.push(socket.remotePort);
      t.after(() => socket.destroy());
    },
    onError: (error: Error) => assert.fail(error),
  };
  return { ports, acceptor };
}

test("an address: what comes before anybody has opened it waits; the last to open has it; the last to go unbinds it", async (t) => {
  const addresses = createAddresses();
  const first = await addresses.claim(anyPort);
  const { port } = first.address as TcpAddress;
  assert.notEqual(port, 0);
  const early = await dial(t, port);
  const one = createAcceptor(t);
  // Most likely it is accepted by now; if not, it is handed out later, which is as good.
  await new Promise((resolve) => setImmediate(resolve));
  first.open(one.acceptor);
  await eventually(() => one.ports, [early.localPort]);

  const second = await addresses.claim({ host: "127.0.0.1", port });
  assert.equal((second.address as TcpAddress).port, port);
  const still = await dial(t, port);
  await eventually(() => one.ports, [early.localPort, still.localPort]);
  const two = createAcceptor(t);
  second.open(two.acceptor);
  const next = await dial(t, port);
  await eventually(() => two.ports, [next.localPort]);
  assert.equal(one.ports.length, 2);

  first.release();
  first.release();
  const last = await dial(t, port);
  await eventually(() => two.ports, [next.localPort, last.localPort]);
  second.release();
  const refused = connect(port, "127.0.0.1");
  const [error] = (await once(refused, "error")) as [NodeJS.ErrnoException];
  assert.equal(error.code, "ECONNREFUSED");
});

test("an address that is given up before it was opened closes what waits, and leaves the owner it has", async (t) => {
  const addresses = createAddresses();
  const owner = await addresses.claim(anyPort);
  const { port } = owner.address as TcpAddress;
  const { ports, acceptor } = createAcceptor(t);
  owner.open(acceptor);
  (await addresses.claim({ host: "127.0.0.1", port })).release();
  const socket = await dial(t, port);
  await eventually(() => ports, [socket.localPort]);
  owner.release();

  const unopened = await addresses.claim(anyPort);
  const waiting = await dial(t, (unopened.address as TcpAddress).port);
  const closed = once(waiting, "close");
  waiting.resume();
  unopened.release();
  await closed;
});

test("more sockets on their way to MQTT than allowed: the next is closed and counted, the others get there", async (t) => {
  const spec: ListenerSpec = { name: "x", address: anyPort, proxyProtocol: true, tls: undefined, webSocket: undefined };
  const failures: string[] = [];
  const streams: Duplex[] = [];
  const owner: ListenerOwner = {
    arriving: new Set(),
    maxArriving: 2,
    onStream: (stream, { address }) => {
      failures.push(`there: ${address}`);
      streams.push(stream);
    },
    onFailure: (why) => failures.push(why),
    onRefused: () => assert.fail(),
  };
  const claim = await createAddresses().claim(anyPort);
  const listener = createListener(claim, Symbol("x"), owner);
  listener.open(createGate(spec, { handshakeTimeoutMs: 60_000, maxPacketBytes: 1000 }, owner));
  t.after(() => {
    listener.release();
    for (const each of [...owner.arriving, ...streams]) each.destroy();
  });
  const { port } = listener.address as TcpAddress;
  const [one] = [await dial(t, port), await dial(t, port)];
  await eventually(() => owner.arriving.size, 2);
  const third = await dial(t, port);
  third.resume();
  await once(third, "close");
  assert.deepEqual([failures, owner.arriving.size], [["tooManyPending"], 2]);
  one.write("PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\n");
  await eventually(() => failures, ["tooManyPending", "there: 192.0.2.7"]);
  assert.equal(owner.arriving.size, 1);
  // There is a place again.
  await dial(t, port);
  await eventually(() => owner.arriving.size, 2);
});
