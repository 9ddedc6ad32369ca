import assert from "node:assert/strict";
import { type Duplex, duplexPair } from "node:stream";
import { test, type TestContext } from "node:test";
import { Connection, type ConnectionOwner, type Work } from "../../kernel/connection.ts";
import { createTurns } from "../../kernel/turns.ts";
import { connectFrame, publishFrame } from "../bench/load/frames.ts";
import { eventually } from "../helpers/eventually.ts";

const maxInWork = 100;
const limits = { maxPacketBytes: 1 << 20, maxInWork, maxInWorkBytes: 1e9, connectTimeoutMs: 10_000 };
const share = 32;

interface Member {
  readonly connection: Connection;
  readonly client: Duplex;
  /** Oldest first. */
  readonly works: Work[];
  /** That came in. */
  packets: number;
}

/** Connections whose PUBLISH packets stay in work until a test finishes them. */
function openCrowd(t: TestContext, count: number) {
  const crowd = { inWork: 0 };
  const members = new Map<Connection, Member>();
  const owner: ConnectionOwner = {
    limits,
    turns: createTurns(),
    crowd,
    onPacket(connection, packet) {
      if (packet.cmd !== "publish") return;
      const member = members.get(connection)!;
      const work: Work = { packetId: packet.packetId ?? 0, bytes: packet.bytes, state: "pending", ack: undefined };
      connection.begin(work);
      member.works.push(work);
      member.packets++;
    },
    onRefusal: (_connection, refusal) => assert.fail(JSON.stringify(refusal)),
    onFailure: (_connection, error) => assert.fail(String(error)),
    onPaused: () => undefined,
    onDrain: () => undefined,
    onDisconnect: () => undefined,
    onClosed: () => undefined,
  };
  for (let n = 0; n < count; n++) {
    const [socket, client] = duplexPair();
    const connection = new Connection(socket, { address: "127.0.0.1" } as Connection["remote"], owner);
    members.set(connection, { connection, client, works: [], packets: 0 });
    client.write(connectFrame({ clientId: `client-${n}` }));
  }
  t.after(() => {
    for (const { connection, client } of members.values()) {
      connection.close("shutdown");
      client.destroy();
    }
  });
  const list = [...members.values()];
  return {
    crowd,
    members: list,
    inWork: () => list.map(({ connection }) => connection.working),
    send: async (member: Member, packets: number): Promise<void> => {
      const frame = publishFrame("a/b", Buffer.alloc(20), 0, 0);
      const before = member.packets;
      member.client.write(Buffer.concat(Array.from({ length: packets }, () => frame)));
      await eventually(() => member.packets > before, true);
    },
    finish: (member: Member, packets: number): void => {
      for (const work of member.works.splice(0, packets)) member.connection.finish(work, undefined);
    },
  };
}

test("one connection has maxInWork packets in work; in a crowd each has no more than a fair share", async (t) => {
  const { crowd, members, inWork, send } = openCrowd(t, 6);
  for (const member of members) await send(member, 300);
  // Twice maxInWork in all, and from there on the share.
  assert.deepEqual(inWork(), [maxInWork, maxInWork, share, share, share, share]);
  assert.equal(crowd.inWork, 2 * maxInWork + 4 * share);
});

test("who has less than a fair share under way is read from, however large the crowd", async (t) => {
  const { members, inWork, send } = openCrowd(t, 6);
  for (const member of members.slice(0, 5)) await send(member, 300);
  await send(members[5]!, 3);
  assert.equal(inWork()[5], 3);
});

test("a crowd goes on as its packets are through, and nothing is left behind or counted twice", async (t) => {
  const { crowd, members, inWork, send, finish } = openCrowd(t, 6);
  for (const member of members) await send(member, 300);
  const [, , third] = members;
  finish(third!, share / 2);
  await eventually(() => third!.packets, share + share / 2);
  for (let round = 0; members.some(({ packets }) => packets < 300); round++) {
    assert.ok(round < 1000);
    for (const member of members) finish(member, 10);
    assert.equal(
      crowd.inWork,
      inWork().reduce((sum, count) => sum + count, 0),
    );
    await new Promise(setImmediate);
  }
  for (const member of members) finish(member, 300);
  assert.equal(crowd.inWork, 0);
  // It is no crowd any more.
  await send(members[2]!, 300);
  assert.equal(inWork()[2], maxInWork);
});
