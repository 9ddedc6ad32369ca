import assert from "node:assert/strict";
import { once } from "node:events";
import { connect, createServer, type Socket } from "node:net";
import { test } from "node:test";
import { setImmediate as turn } from "node:timers/promises";
import { Connection, type ConnectionOwner } from "../../kernel/connection.ts";
import { createTurns } from "../../kernel/turns.ts";
import { connectFrame, publishFrame } from "../bench/load/frames.ts";

const limits = { maxPacketBytes: 1 << 20, maxInWork: 1e6, maxInWorkBytes: 1e9, connectTimeoutMs: 10_000 };

test("however much many connections have sent, a turn of the event loop reads a bounded part of it", async (t) => {
  const floods = 20;
  const packets = 8000;
  const flood = Buffer.concat([
    connectFrame({ clientId: "flood" }),
    ...Array.from({ length: packets }, () => publishFrame("a/b", Buffer.alloc(250), 0, 0)),
  ]);
  const server = createServer({ pauseOnConnect: true }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as { port: number };
  const clients: Socket[] = [];
  t.after(() => {
    for (const client of clients) client.destroy();
    server.close();
  });
  const accepted: Socket[] = [];
  server.on("connection", (socket) => accepted.push(socket));
  for (let n = 0; n < floods; n++) {
    const client = connect({ host: "127.0.0.1", port });
    clients.push(client);
    await once(client, "connect");
    client.write(flood);
  }
  while (accepted.length < floods) await turn();

  let packetsOfTurn = 0;
  let most = 0;
  let seen = 0;
  let closed = 0;
  const reasons = new Set<number>();
  const owner: ConnectionOwner = {
    limits,
    turns: createTurns(),
    crowd: { inWork: 0 },
    onPacket() {
      packetsOfTurn++;
      seen++;
    },
    onRefusal: (_connection, refusal) => assert.fail(JSON.stringify(refusal)),
    onFailure: (_connection, error) => assert.fail(String(error)),
    onPaused: (_connection, why) => reasons.add(why),
    onDrain: () => undefined,
    onDisconnect: () => undefined,
    onClosed: () => closed++,
  };
  const connections = accepted.map((socket) => {
    const connection = new Connection(socket, { address: "127.0.0.1" } as Connection["remote"], owner);
    socket.resume();
    return connection;
  });
  let turns = 0;
  while (seen < floods * (packets + 1)) {
    packetsOfTurn = 0;
    await turn();
    turns++;
    most = Math.max(most, packetsOfTurn);
    assert.ok(turns < 1_000_000 && closed === 0);
  }
  // In the first turn each of them is read from once, before anybody knows that it is a flood.
  const mostBytes = floods * 2 * 64 * 1024;
  assert.ok(most <= mostBytes / 250, `${most} packets in one turn`);
  assert.deepEqual([...reasons], [32]);
  for (const connection of connections) connection.close("shutdown");
});
