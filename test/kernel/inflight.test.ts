/** Resends: each delivery in its own time, by one timer that goes on. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { createInflight } from "../../kernel/inflight.ts";
import type { Delivery } from "../../kernel/store.ts";
import { eventually } from "../helpers/eventually.ts";

/** Of QoS 2, whose PUBREL is what is sent again. */
function released(packetId: number): Delivery {
  const message = { topic: "a", payload: Buffer.from("x"), qos: 2 as const, retain: false };
  return { packetId, qos: 2, retain: false, released: true, identifiers: [], message } as unknown as Delivery;
}

function start() {
  const sent: { packetId: number; at: number }[] = [];
  const options = { retryMs: 100 };
  const inflight = createInflight({
    protocolVersion: 4,
    retryMs: () => options.retryMs,
    hasRoom: () => true,
    send: (frame) => sent.push({ packetId: frame.readUInt16BE(2), at: performance.now() }),
    settle: () => undefined,
    release: () => undefined,
  });
  const settle = (packetId: number) => inflight.acknowledge({ cmd: "pubcomp", packetId, reasonCode: 0 });
  return { inflight, sent, options, settle };
}

test("a delivery is sent again after its own interval, though another's timer runs already", async (t) => {
  const { inflight, sent, settle } = start();
  t.after(() => inflight.close());
  inflight.add(released(1));
  await settle(1);
  await sleep(60);
  const at = performance.now();
  inflight.add(released(2));
  await eventually(() => sent.length >= 2, true);
  assert.deepEqual([...new Set(sent.map(({ packetId }) => packetId))], [2]);
  // A timer may be a millisecond early.
  assert.ok(sent[0]!.at - at >= 98, `after ${sent[0]!.at - at} ms`);
  assert.ok(sent[1]!.at - sent[0]!.at >= 98, `again after ${sent[1]!.at - sent[0]!.at} ms`);
});

test("a shorter interval is the next delivery's", async (t) => {
  const { inflight, sent, options, settle } = start();
  t.after(() => inflight.close());
  options.retryMs = 600_000;
  inflight.add(released(1));
  await settle(1);
  options.retryMs = 50;
  inflight.add(released(2));
  await eventually(() => sent.length > 0, true);
});
