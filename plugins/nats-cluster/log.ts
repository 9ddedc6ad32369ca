/**
 * The log of one proxy's messages of QoS 1 and 2, and reads of it that say how far they are complete. A position counts as
 * read only where a server has said that it has come so far, or the leader has said that nothing is left before it: no
 * answer alone shows that nothing was missed.
 */
import { hash } from "node:crypto";
import type { ClusterLog, ClusterMessage, ClusterSelector, LogPage, LogPosition } from "@sluice/kernel/cluster";
import { decodeBody, encodeBody } from "./body.ts";
import type { Layout, ProxyLayout } from "./layout.ts";
import { type Publisher, Refused, wrongSequence } from "./publisher.ts";
import type { Reads, Stored } from "./reads.ts";
import { subjectProblem } from "./subjects.ts";

export interface LogDeps {
  readonly layout: Layout;
  readonly proxy: ProxyLayout;
  readonly reads: Reads;
  readonly publisher: Publisher;
  readonly incarnation: string;
  readonly limits: { readonly maxTopicBytes: number; readonly maxMessageBytes: number };
  readonly wait: (ms: number) => Promise<void>;
}

/** What the filters of one shard are. */
interface Wanted {
  readonly exact: Set<string>;
  readonly wild: Set<string>;
}

interface ShardPage {
  readonly stored: readonly Stored[];
  readonly upTo: number;
  readonly isEnd: boolean;
  readonly gap: number | undefined;
}

/** Up to so many filters without wildcards are asked for one by one. */
const fewFilters = 4;
const filtersAtOnce = 1000;
const maxBatch = 256;
const minBatch = 16;
/** For a server that is behind. */
const lagTries = 20;
const lagMs = 25;

export function createLog({ layout, proxy, reads, publisher, incarnation, limits, wait }: LogDeps): ClusterLog {
  let count = 0;

  function problemOf({ topic }: ClusterMessage, body: Buffer): string | undefined {
    if (Buffer.byteLength(topic) > limits.maxTopicBytes) {
      return `its topic is longer than the ${limits.maxTopicBytes} bytes that a cluster carries`;
    }
    const problem = subjectProblem(topic);
    if (problem !== undefined) return `its topic can't be used in a cluster: ${problem}`;
    if (body.length > limits.maxMessageBytes) {
      return `it has ${body.length} bytes, and the NATS servers' max_payload leaves ${limits.maxMessageBytes}`;
    }
    return undefined;
  }

  function plan(selectors: readonly ClusterSelector[]): Map<number, Wanted> {
    const shards = new Map<number, Wanted>();
    function add(shard: number, suffix: string, isWild: boolean): void {
      let wanted = shards.get(shard);
      if (!wanted) shards.set(shard, (wanted = { exact: new Set(), wild: new Set() }));
      (isWild ? wanted.wild : wanted.exact).add(proxy.logSubject(shard, suffix));
    }
    for (const selector of selectors) {
      const { shard, suffix } = proxy.selection(selector);
      if (shard !== undefined) add(shard, suffix, false);
      else for (let each = 0; each < layout.shards; each++) add(each, suffix, true);
    }
    return shards;
  }

  async function readShard(shard: number, wanted: Wanted, after: number, batch: number): Promise<ShardPage> {
    const stream = layout.streams.log(shard);
    const { first, last: end } = await reads.state(stream);
    const gap = first > after + 1 ? first : undefined;
    if (end <= after) return { stored: [], upTo: after, isEnd: true, gap };
    const exact = [...wanted.exact];
    const pages: Promise<{ found: readonly Stored[]; upTo: number }>[] = [];
    const onePage = (pattern: string): Promise<{ found: readonly Stored[]; upTo: number }> =>
      reads.page(stream, pattern, { seq: after + 1, batch, end });
    if (exact.length <= fewFilters) pages.push(...exact.map(onePage));
    else {
      for (let at = 0; at < exact.length; at += filtersAtOnce) {
        pages.push(readMany(shard, exact.slice(at, at + filtersAtOnce), { after, batch, end }));
      }
    }
    pages.push(...[...wanted.wild].map(onePage));
    const bySeq = new Map<number, Stored>();
    let upTo = Infinity;
    for (const page of await Promise.all(pages)) {
      upTo = Math.min(upTo, page.upTo);
      for (const each of page.found) bySeq.set(each.seq, each);
    }
    const stored = [...bySeq.values()].filter(({ seq }) => seq <= upTo).sort((a, b) => a.seq - b.seq);
    return { stored, upTo: Math.max(upTo, after), isEnd: upTo >= end, gap };
  }

  /** Finds out in one request which of the subjects have anything new. */
  async function readMany(
    shard: number,
    subjects: readonly string[],
    { after, batch, end }: { after: number; batch: number; end: number },
  ): Promise<{ found: readonly Stored[]; upTo: number }> {
    const stream = layout.streams.log(shard);
    const mark = layout.markOf(shard);
    for (let attempt = 1; ; attempt++) {
      const answer = await reads.lasts(stream, [...subjects, mark], after + 1);
      if (answer === "tooMany") throw new Error(`NATS refused to look for ${subjects.length} subjects at once`);
      const { found: lasts, upTo } = answer;
      if (upTo === 0) await writeMark(mark);
      else if (upTo >= end || attempt >= lagTries) {
        const pages = await Promise.all(
          lasts.filter(({ subject }) => subject !== mark).map((last) => readTo(stream, last, { after, batch, upTo })),
        );
        return {
          found: pages.flatMap(({ found }) => found),
          upTo: Math.min(Math.max(upTo, after), ...pages.map((page) => page.upTo)),
        };
      }
      if (attempt >= lagTries) return { found: [], upTo: after };
      await wait(lagMs);
    }
  }

  /** The messages of one subject, whose last one is known. */
  async function readTo(
    stream: string,
    last: Stored,
    { after, batch, upTo }: { after: number; batch: number; upTo: number },
  ): Promise<{ found: readonly Stored[]; upTo: number }> {
    const found = await reads.next(stream, last.subject, after + 1, batch);
    const tail = found.at(-1)?.seq ?? 0;
    if (tail >= last.seq) return { found, upTo: Math.max(upTo, tail) };
    // The server that was asked now is behind the other, or has more than fits a page.
    return { found, upTo: found.length >= batch ? tail : Math.max(after, tail) };
  }

  /** What lets a server that has none of the subjects say how far it has come. It goes with the oldest messages. */
  async function writeMark(mark: string): Promise<void> {
    try {
      const head = Buffer.from("NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: 0\r\n\r\n");
      await publisher.write(mark, Buffer.alloc(0), head);
    } catch (error) {
      // Another node was quicker.
      if (!(error instanceof Refused) || error.code !== wrongSequence.verdict) throw error;
    }
  }

  function toEntry(shard: number, { subject, seq, body }: Stored): LogPage["messages"][number][] {
    // A mark, or what no gateway has written.
    if (body.length === 0) return [];
    return [{ message: decodeBody(body, proxy.topicOf(subject)), position: { shard, seq } }];
  }

  return {
    async append(message, { dedupeId } = {}) {
      const body = encodeBody(message);
      const problem = problemOf(message, body);
      if (problem !== undefined) throw new Error(`the message can't be stored: ${problem}`);
      const { shard, subject } = proxy.message(message.topic, message.to);
      const id =
        dedupeId === undefined
          ? `${incarnation}.${(++count).toString(36)}`
          : hash("sha256", `${proxy.proxy}\0${dedupeId}`, "base64url");
      return { shard, seq: await publisher.append(shard, subject, body, id) };
    },
    async end(selectors) {
      const shards = [...plan(selectors).keys()];
      const states = await Promise.all(shards.map((shard) => reads.state(layout.streams.log(shard))));
      return new Map(shards.map((shard, at) => [shard, states[at]?.last ?? 0]));
    },
    async read(selectors, after, { maxMessages }) {
      const shards = plan(selectors);
      const batch = Math.min(maxBatch, Math.max(minBatch, Math.ceil(maxMessages / Math.max(1, shards.size))));
      const pages = await Promise.all(
        [...shards].map(
          async ([shard, wanted]) => [shard, await readShard(shard, wanted, after.get(shard) ?? 0, batch)] as const,
        ),
      );
      const gaps = new Map<number, number>();
      for (const [shard, { gap }] of pages) if (gap !== undefined) gaps.set(shard, gap);
      return {
        messages: pages.flatMap(([shard, { stored }]) => stored.flatMap((each) => toEntry(shard, each))),
        upTo: new Map(pages.map(([shard, { upTo }]) => [shard, upTo])),
        isEnd: pages.every(([, { isEnd }]) => isEnd),
        gaps,
      };
    },
    async get({ shard, seq }: LogPosition) {
      const stream = layout.streams.log(shard);
      const stored = (await reads.at(stream, seq)) ?? (await reads.atByLeader(stream, seq));
      return stored && toEntry(shard, stored)[0]?.message;
    },
  };
}
