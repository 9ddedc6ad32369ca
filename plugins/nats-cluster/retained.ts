/** Retained messages of one proxy: the last message of each topic's subject; a cleared one is empty and goes by itself. */
import type { ClusterRetained, LogPosition } from "@sluice/kernel/cluster";
import { decodeBody, encodeBody } from "./body.ts";
import type { Layout, ProxyLayout } from "./layout.ts";
import { type Publisher, Refused, wrongSequence } from "./publisher.ts";
import type { Reads, Stored } from "./reads.ts";
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
/** How old what was heard may be where it matters. */
const recountMs = 250;
/** Topics that this node has set since; with more of them it asks. */
const maxSince = 10_000;

export function createRetained(deps: RetainedDeps): ClusterRetained {
  const { layout, proxy, reads, publisher, limits, now } = deps;
  let heard = { messages: 0, bytes: 0 };
  let heardAt = -Infinity;
  let since = { topics: new Set<string>(), bytes: 0 };
  let hearing: Promise<void> | undefined;

  /** Answers false, and writes nothing, where `fits` says so of what is there. */
  async function setAt(
    shard: number,
    subject: string,
    body: Buffer,
    o: { seq: number; ttl: string; fits: (before: number) => boolean },
  ): Promise<boolean> {
    const stream = layout.streams.retained(shard);
    let found = await reads.last(stream, subject);
    for (let attempt = 0; attempt < maxTries; attempt++) {
      // Without a position it is the last one, whatever is there.
      if (o.seq > 0 && found && positionOf(found) > o.seq) return true;
      if (!o.fits(sizeOf(found))) {
        // Of a server that may be behind.
        const exact: Stored | undefined = await reads.lastByLeader(stream, subject);
        if (exact?.seq === found?.seq || !o.fits(sizeOf(exact))) return false;
        found = exact;
        continue;
      }
      const head = `NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: ${found?.seq ?? 0}\r\n${o.ttl}\r\n`;
      try {
        await publisher.write(subject, body, Buffer.from(head));
        return true;
      } catch (error) {
        if (!(error instanceof Refused) || error.code !== wrongSequence.verdict) throw error;
      }
      found = await reads.lastByLeader(stream, subject);
    }
    throw new Error("a retained message was replaced by others again and again");
  }

  /** Until it is heard of. */
  function noteSet(topic: string, bytes: number): void {
    since.topics.add(topic);
    since.bytes += bytes;
    if (since.topics.size >= maxSince) void recount().catch(() => undefined);
  }

  async function hear(): Promise<void> {
    const before = since;
    since = { topics: new Set(), bytes: 0 };
    try {
      const shards = Array.from({ length: layout.shards }, (_, shard) => shard);
      const states = await Promise.all(
        shards.map(async (shard) => {
          const stream = layout.streams.retained(shard);
          const [state, messages] = await Promise.all([
            reads.state(stream),
            reads.count(stream, proxy.retainedOf(shard)),
          ]);
          // Proxies share a stream: of its bytes the share of its messages.
          return { messages, bytes: state.messages === 0 ? 0 : (state.bytes / state.messages) * messages };
        }),
      );
      heard = {
        messages: states.reduce((sum, { messages }) => sum + messages, 0),
        bytes: Math.round(states.reduce((sum, { bytes }) => sum + bytes, 0)),
      };
      heardAt = now();
    } catch (error) {
      for (const topic of before.topics) since.topics.add(topic);
      since.bytes += before.bytes;
      throw error;
    }
  }

  async function recount(): Promise<void> {
    if (now() - heardAt < recountMs) return;
    hearing ??= hear().finally(() => (hearing = undefined));
    await hearing;
  }

  return {
    recount,
    async set(message, position: LogPosition | undefined, { mayAdd, mayGrow }) {
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
      const fits = (before: number): boolean => (mayAdd || before > 0) && (mayGrow || before >= body.length);
      if (position || !(mayAdd && mayGrow)) {
        if (!(await setAt(shard, subject, body, { seq: position?.seq ?? 0, ttl, fits }))) return false;
      } else {
        await publisher.write(subject, body, Buffer.from(`NATS/1.0\r\n${ttl === "" ? "\r\n" : `${ttl}\r\n`}`));
      }
      if (!isClear && mayAdd) noteSet(message.topic, subject.length + body.length);
      return true;
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
      const unheard = { messages: since.topics.size, bytes: since.bytes };
      return { messages: heard.messages + unheard.messages, bytes: heard.bytes + unheard.bytes, unheard };
    },
  };
}

function positionOf({ body }: Stored): number {
  return body.length >= positionBytes ? body.readUIntBE(0, positionBytes) : 0;
}

/** 0: there is none. */
function sizeOf(found: Stored | undefined): number {
  return found && found.body.length > positionBytes ? found.body.length : 0;
}
