/**
 * Small records of sessions. The owner record moves by compare-and-set; its revision, the sequence number at which it was
 * written, is the condition of every other write. NATS answers a failed condition in two ways: with the number that it
 * found, a verdict, or without one, which says only that another such write is under way; the second is tried again.
 *
 * A record is a byte with its form, then the value; the owner record has a number of its own after that byte, by which a
 * node knows what it has written itself though no answer came. A deleted record is an empty message that goes by itself.
 */
import { randomBytes } from "node:crypto";
import type { Counter } from "@sluice/kernel";
import type { ClaimOutcome, ClusterRecords, ListedSession, OwnerRecord, RecordChange } from "@sluice/kernel/cluster";
import type { Layout, ProxyLayout } from "./layout.ts";
import { type Outgoing, type Publisher, Refused, wrongSequence } from "./publisher.ts";
import type { Reads, Stored } from "./reads.ts";

export interface RecordsDeps {
  readonly layout: Layout;
  readonly proxy: ProxyLayout;
  readonly reads: Reads;
  readonly publisher: Publisher;
  readonly limits: { readonly maxRecordBytes: number };
  /** Guarded writes that were refused: `fenced`, `taken`. */
  readonly conflicts: Counter;
  /** `written`, `apart`. */
  readonly batches: Counter;
  readonly wait: (ms: number) => Promise<void>;
  /** The servers take several writes as one. */
  readonly takesBatches: () => boolean;
}

const form = 1;
const nonceBytes = 12;
/** How long a deleted record is kept, for those that have not heard. */
const deletedSec = 60;
/** For a server that is behind; then the leader is asked, one record after the other. */
const lagTries = 5;
const lagMs = 20;
const listAtOnce = 250;
const maxClaimTries = 20;
/** Writes that go as one; a server takes 1,000 at most, and 50 such batches of a stream at a time, of all nodes. */
const batchLength = 200;
const maxTogether = 8;
/** How long writes go one by one after a batch that came to nothing. */
const apartMs = 1000;
const empty = Buffer.alloc(0);

export function createRecords(deps: RecordsDeps): ClusterRecords {
  const { layout, proxy, reads, publisher, limits, conflicts, wait } = deps;
  let together = 0;
  let apartUntil = -Infinity;

  async function ownerByLeader(clientId: string): Promise<(Owned & { readonly revision: number }) | undefined> {
    const { shard, base } = proxy.session(clientId);
    const stored = await reads.lastByLeader(layout.streams.sessions(shard), `${base}.own`);
    return stored && { ...readOwner(stored.body), revision: stored.seq };
  }

  async function claim(clientId: string, value: Buffer, expected: number): Promise<ClaimOutcome> {
    const subject = `${proxy.session(clientId).base}.own`;
    const nonce = randomBytes(nonceBytes);
    const body = checked(Buffer.concat([Buffer.from([form]), nonce, value]), limits);
    let condition = expected;
    for (let attempt = 0; attempt < maxClaimTries; attempt++) {
      try {
        return { revision: await publisher.write(subject, body, headOf({ expected: condition })) };
      } catch (error) {
        if (!isVerdict(error)) throw error;
      }
      const found = await ownerByLeader(clientId);
      // An earlier attempt has been applied, and its answer was lost.
      if (found?.nonce.equals(nonce)) return { revision: found.revision };
      if (found?.value !== undefined && found.revision !== condition) {
        conflicts.inc({ proxy: proxy.proxy, kind: "taken" });
        return { taken: true, by: { value: found.value, revision: found.revision } };
      }
      // Deleted, gone, or the verdict of a leader that knew less than this one.
      if (expected !== 0 && found?.value === undefined) {
        conflicts.inc({ proxy: proxy.proxy, kind: "taken" });
        return { taken: true, by: undefined };
      }
      condition = found?.revision ?? 0;
      if (attempt > 0) await wait(lagMs);
    }
    throw new Error("NATS gave contradictory answers about the owner of a session");
  }

  /** Whether a verdict against a guarded write stands, or came from a server that knew less. */
  async function isFenced(clientId: string, revision: number): Promise<boolean> {
    const found = await ownerByLeader(clientId);
    if (found?.revision === revision && found.value !== undefined) return false;
    conflicts.inc({ proxy: proxy.proxy, kind: "fenced" });
    return true;
  }

  function toWrite(clientId: string, revision: number, { key, value, ttlMs }: RecordChange): Outgoing {
    const { base } = proxy.session(clientId);
    const ttlSec =
      value === undefined ? deletedSec : ttlMs === undefined ? undefined : Math.max(1, Math.ceil(ttlMs / 1000));
    const body = value === undefined ? empty : checked(Buffer.concat([Buffer.from([form]), value]), limits);
    return { subject: `${base}.${key}`, body, lines: linesOf({ expected: revision, of: `${base}.own`, ttlSec }) };
  }

  async function writeOne(
    clientId: string,
    revision: number,
    { subject, body, lines }: Outgoing,
  ): Promise<"written" | "fenced"> {
    const head = Buffer.from(`NATS/1.0\r\n${lines}\r\n`);
    for (let attempt = 0; attempt < maxClaimTries; attempt++) {
      try {
        await publisher.write(subject, body, head);
        return "written";
      } catch (error) {
        if (!isVerdict(error)) throw error;
      }
      if (await isFenced(clientId, revision)) return "fenced";
      await wait(lagMs);
    }
    throw new Error("NATS gave contradictory answers about the owner of a session");
  }

  /**
   * A round trip instead of one for each. Answers false where it is not known to have been done: one by one, under the same
   * ids, it comes out what was.
   */
  async function writeTogether(changes: readonly Outgoing[]): Promise<boolean> {
    if (changes.length < 2 || !deps.takesBatches() || performance.now() < apartUntil || together >= maxTogether) {
      return false;
    }
    together++;
    try {
      await publisher.writeTogether(changes);
      deps.batches.inc({ proxy: proxy.proxy, outcome: "written" });
      return true;
    } catch (error) {
      deps.batches.inc({ proxy: proxy.proxy, outcome: "apart" });
      if (!isVerdict(error)) apartUntil = performance.now() + apartMs;
      return false;
    } finally {
      together--;
    }
  }

  async function write(
    clientId: string,
    revision: number,
    changes: readonly RecordChange[],
  ): Promise<"written" | "fenced"> {
    const all = changes.map((change) => toWrite(clientId, revision, change));
    for (let at = 0; at < all.length; at += batchLength) {
      const batch = all.slice(at, at + batchLength);
      if (await writeTogether(batch)) continue;
      for (const change of batch) if ((await writeOne(clientId, revision, change)) === "fenced") return "fenced";
    }
    return "written";
  }

  async function load(clientId: string, revision: number): Promise<ReadonlyMap<string, Buffer> | "fenced"> {
    const { shard, base } = proxy.session(clientId);
    const stream = layout.streams.sessions(shard);
    for (let attempt = 1; attempt <= lagTries; attempt++) {
      const answer = await reads.lasts(stream, [`${base}.>`], 0);
      if (answer === "tooMany") break;
      const owner = answer.found.find(({ subject }) => subject === `${base}.own`);
      // A server that does not show the claim may lack what was written before it.
      if (owner?.seq === revision) return toRecords(base, answer.found);
      if ((owner?.seq ?? 0) > revision) return "fenced";
      await wait(lagMs);
    }
    const owner = await ownerByLeader(clientId);
    if (owner?.revision !== revision) return "fenced";
    const { last: end } = await reads.state(stream);
    const found = new Map<string, Stored>();
    for (let seq = 1; seq <= end;) {
      const page = await reads.page(stream, `${base}.>`, { seq, batch: listAtOnce, end });
      for (const each of page.found) found.set(each.subject, each);
      seq = page.upTo + 1;
    }
    return toRecords(base, [...found.values()]);
  }

  return {
    async owner(clientId, isExact = false) {
      if (isExact) {
        const found = await ownerByLeader(clientId);
        return found?.value && { value: found.value, revision: found.revision };
      }
      const { shard, base } = proxy.session(clientId);
      const stored = await reads.last(layout.streams.sessions(shard), `${base}.own`);
      const value = stored && readOwner(stored.body).value;
      return value && { value, revision: stored.seq };
    },
    claim,
    load,
    write,
    async remove(clientId, revision) {
      const records = await load(clientId, revision);
      if (records === "fenced") {
        const found = await ownerByLeader(clientId);
        return found?.value === undefined ? "written" : "fenced";
      }
      const changes = [...records.keys()].map((key) => ({ key, value: undefined }));
      if ((await write(clientId, revision, changes)) === "fenced") return "fenced";
      const { base } = proxy.session(clientId);
      try {
        await publisher.write(`${base}.own`, empty, headOf({ expected: revision, ttlSec: deletedSec }));
        return "written";
      } catch (error) {
        if (!isVerdict(error)) throw error;
      }
      const found = await ownerByLeader(clientId);
      return found?.value === undefined ? "written" : "fenced";
    },
    async *list(keys) {
      for (let shard = 0; shard < layout.shards; shard++) {
        const stream = layout.streams.sessions(shard);
        const { last: end } = await reads.state(stream);
        for (let seq = 1; seq <= end;) {
          const page = await reads.page(stream, proxy.sessionsOf(shard, "own"), { seq, batch: listAtOnce, end });
          seq = page.upTo + 1;
          const owners = page.found.flatMap(({ subject, seq: revision, body }) => {
            const { value } = readOwner(body);
            return value ? [{ base: subject.slice(0, -".own".length), owner: { value, revision } }] : [];
          });
          yield await withRecords(stream, owners, keys);
        }
      }
    },
  };

  async function withRecords(
    stream: string,
    owners: readonly { readonly base: string; readonly owner: OwnerRecord }[],
    keys: readonly string[],
  ): Promise<ListedSession[]> {
    const bySubject = new Map<string, Buffer>();
    const step = Math.max(1, Math.floor(1000 / Math.max(1, keys.length)));
    for (let at = 0; at < owners.length && keys.length > 0; at += step) {
      const subjects = owners.slice(at, at + step).flatMap(({ base }) => keys.map((key) => `${base}.${key}`));
      const answer = await reads.lasts(stream, subjects, 0);
      if (answer === "tooMany") throw new Error(`NATS refused to look for ${subjects.length} records at once`);
      for (const { subject, body } of answer.found) if (body.length > 0) bySubject.set(subject, body.subarray(1));
    }
    return owners.map(({ base, owner }) => ({
      owner,
      records: new Map(
        keys.flatMap((key) => {
          const value = bySubject.get(`${base}.${key}`);
          return value ? [[key, value] as const] : [];
        }),
      ),
    }));
  }
}

interface Owned {
  /** Undefined: it has been deleted. */
  readonly value: Buffer | undefined;
  readonly nonce: Buffer;
}

function readOwner(body: Buffer): Owned {
  if (body.length === 0) return { value: undefined, nonce: empty };
  if (body[0] !== form) throw new RangeError(`an owner record in form ${body[0]}, and this release reads ${form}`);
  return { nonce: body.subarray(1, 1 + nonceBytes), value: body.subarray(1 + nonceBytes) };
}

function toRecords(base: string, found: readonly Stored[]): Map<string, Buffer> {
  const records = new Map<string, Buffer>();
  for (const { subject, body } of found) {
    const key = subject.slice(base.length + 1);
    if (key !== "own" && body.length > 0) records.set(key, body.subarray(1));
  }
  return records;
}

interface Condition {
  readonly expected: number;
  readonly of?: string;
  readonly ttlSec?: number | undefined;
}

function linesOf({ expected, of, ttlSec }: Condition): string {
  const lines = [`Nats-Expected-Last-Subject-Sequence: ${expected}`];
  if (of !== undefined) lines.push(`Nats-Expected-Last-Subject-Sequence-Subject: ${of}`);
  if (ttlSec !== undefined) lines.push(`Nats-TTL: ${ttlSec}s`);
  // The same in every attempt, so that one which was held up somewhere does nothing when it comes at last.
  lines.push(`Nats-Msg-Id: ${randomBytes(12).toString("base64url")}`);
  return lines.map((line) => `${line}\r\n`).join("");
}

function headOf(condition: Condition): Buffer {
  return Buffer.from(`NATS/1.0\r\n${linesOf(condition)}\r\n`);
}

function isVerdict(error: unknown): boolean {
  return error instanceof Refused && error.code === wrongSequence.verdict;
}

function checked(body: Buffer, { maxRecordBytes }: { readonly maxRecordBytes: number }): Buffer {
  if (body.length > maxRecordBytes) {
    throw new Error(
      `a session's record has ${body.length} bytes, and the NATS servers' max_payload leaves ${maxRecordBytes}`,
    );
  }
  return body;
}
