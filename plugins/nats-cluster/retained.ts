/** Retained messages of one proxy: the last message of each topic's subject; a cleared one is empty and goes by itself. */
import type { ClusterRetained, LogPosition } from "@sluice/kernel/cluster";
import { decodeBody, encodeBody } from "./body.ts";
import type { Layout, ProxyLayout } from "./layout.ts";
import { type Publisher, Refused, wrongSequence } from "./publisher.ts";
import type { Reads, StreamState } from "./reads.ts";
import { subjectProblem } from "./subjects.ts";

export interface RetainedDeps {
  readonly layout: Layout;
  readonly proxy: ProxyLayout;
  readonly reads: Reads;
  readonly publisher: Publisher;
  readonly limits: { readonly maxMessageBytes: number };
  readonly now: () => number;
}

/** Before the message: its position in the log, 0 = it has none. */
const positionBytes = 6;
/** How long a cleared one is kept, so that what was set before it does not come back. */
const clearedSec = 60;
const batch = 256;
const maxTries = 20;

export function createRetained(deps: RetainedDeps): ClusterRetained & { readonly refresh: () => Promise<void> } {
  const { layout, proxy, reads, publisher, limits, now } = deps;
  let counts = { messages: 0, bytes: 0 };

  async function setAt(shard: number, subject: string, body: Buffer, o: { seq: number; ttl: string }): Promise<void> {
    const stream = layout.streams.retained(shard);
    let found = await reads.last(stream, subject);
    for (let attempt = 0; attempt < maxTries; attempt++) {
      if (found && found.body.length >= positionBytes && found.body.readUIntBE(0, positionBytes) > o.seq) return;
      const head = `NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: ${found?.seq ?? 0}\r\n${o.ttl}\r\n`;
      try {
        await publisher.write(subject, body, Buffer.from(head));
        return;
      } catch (error) {
        if (!(error instanceof Refused) || error.code !== wrongSequence.verdict) throw error;
      }
      found = await reads.lastByLeader(stream, subject);
    }
    throw new Error("a retained message was replaced by others again and again");
  }

  return {
    async set(message, position: LogPosition | undefined) {
      const problem = subjectProblem(message.topic);
      if (problem !== undefined)
        throw new Error(`the message can't be retained: its topic can't be used in a cluster: ${problem}`);
      const { shard, subject } = proxy.retained(message.topic);
      const start = Buffer.alloc(positionBytes);
      start.writeUIntBE(position?.seq ?? 0, 0, positionBytes);
      const isClear = message.payload.length === 0;
      const body = isClear ? start : Buffer.concat([start, encodeBody(message)]);
      if (body.length > limits.maxMessageBytes)
        throw new Error(`the message can't be retained: it has ${body.length} bytes`);
      const leftMs = message.expiresAt === 0 ? undefined : message.expiresAt - now();
      const ttlSec = isClear ? clearedSec : leftMs === undefined ? undefined : Math.max(1, Math.ceil(leftMs / 1000));
      const ttl = ttlSec === undefined ? "" : `Nats-TTL: ${ttlSec}s\r\n`;
      if (position) await setAt(shard, subject, body, { seq: position.seq, ttl });
      else await publisher.write(subject, body, Buffer.from(`NATS/1.0\r\n${ttl === "" ? "\r\n" : `${ttl}\r\n`}`));
    },
    async *match(topicFilter) {
      const problem = subjectProblem(topicFilter);
      if (problem !== undefined) throw new Error(`the topic filter can't be used in a cluster: ${problem}`);
      const only = proxy.retainedShard(topicFilter);
      for (let shard = only ?? 0; shard < (only === undefined ? layout.shards : only + 1); shard++) {
        const stream = layout.streams.retained(shard);
        const pattern = proxy.retainedMatching(shard, topicFilter);
        const { last: end } = await reads.state(stream);
        // One that is replaced meanwhile comes a second time.
        const seen = new Set<string>();
        for (let seq = 1; seq <= end;) {
          const page = await reads.page(stream, pattern, { seq, batch, end });
          seq = page.upTo + 1;
          const piece = page.found.filter(({ subject, body }) => {
            if (body.length <= positionBytes || seen.has(subject)) return false;
            seen.add(subject);
            return true;
          });
          if (piece.length === 0) continue;
          yield piece.map(({ subject, body }) => decodeBody(body.subarray(positionBytes), proxy.topicOf(subject)));
        }
      }
    },
    get counts() {
      return counts;
    },
    async refresh() {
      const streams = Array.from({ length: layout.shards }, (_, shard) => layout.streams.retained(shard));
      const states: StreamState[] = await Promise.all(streams.map((stream) => reads.state(stream)));
      counts = {
        messages: states.reduce((sum, { messages }) => sum + messages, 0),
        bytes: states.reduce((sum, { bytes }) => sum + bytes, 0),
      };
    },
  };
}
