/**
 * Reads of streams. A *direct* read is answered by any server that has the stream, which may be behind the others; a read
 * by the *leader* is exact. What they say of the end of a stream differs in the same way, and no answer of one is taken
 * for the other's.
 */
import type { Clock } from "@sluice/kernel";
import type { Incoming } from "./connection.ts";
import { type Inbox, isNoResponders, Unanswered } from "./inbox.ts";

export interface Stored {
  readonly subject: string;
  readonly seq: number;
  readonly body: Buffer;
}

export interface StreamState {
  /** Of the oldest message that is left; one beyond `last` where there is none. */
  readonly first: number;
  readonly last: number;
  readonly messages: number;
  readonly bytes: number;
}

export interface Reads {
  /** The last message with this subject. Of a server that may be behind. */
  last(stream: string, subject: string): Promise<Stored | undefined>;
  /** The same, of the leader. */
  lastByLeader(stream: string, subject: string): Promise<Stored | undefined>;
  /** The first message from `seq` on whose subject the pattern matches. Of the leader. */
  nextByLeader(stream: string, pattern: string, seq: number): Promise<Stored | undefined>;
  /** The message at `seq`. Of the leader. */
  atByLeader(stream: string, seq: number): Promise<Stored | undefined>;
  /** The message at `seq`. Of a server that may be behind. */
  at(stream: string, seq: number): Promise<Stored | undefined>;
  /** Messages from `seq` on, as many as `batch` at most; fewer = that server has no more, now. */
  next(stream: string, pattern: string, seq: number, batch: number): Promise<Stored[]>;
  /**
   * Messages from `seq` on, in their order, none left out up to `upTo`: what a server that is behind does not show is found
   * with the leader. @param end the stream's, as the leader has told it before
   */
  page(
    stream: string,
    pattern: string,
    o: { readonly seq: number; readonly batch: number; readonly end: number },
  ): Promise<{ readonly found: readonly Stored[]; readonly upTo: number }>;
  /**
   * The last message of each subject that a pattern matches and that is not before `seq`, all of one server at one moment,
   * when it had come up to `upTo` (0 = it says nothing, for no message matches whatever its `seq`).
   * `tooMany` = over 1,024 subjects match.
   */
  lasts(
    stream: string,
    patterns: readonly string[],
    seq: number,
  ): Promise<{ readonly found: Stored[]; readonly upTo: number } | "tooMany">;
  /** How many messages there are whose subject the pattern matches. Of a server that may be behind. */
  count(stream: string, pattern: string): Promise<number>;
  /** Of the leader, as it was at some moment after the call. Calls made at once share an answer. */
  state(stream: string): Promise<StreamState>;
  /** Whether somebody leads the stream, and has heard of enough of the others lately. Asks once. */
  isLed(stream: string): Promise<boolean>;
}

const retryMs = 100;

export function createReads(
  inbox: Inbox,
  { clock, answerMs, totalMs }: { clock: Clock; answerMs: () => number; totalMs: number },
): Reads {
  const states = new Map<string, { running: Promise<StreamState>; next: Promise<StreamState> | undefined }>();

  /** Again, where nothing has answered: a leader is elected in seconds. */
  async function insist<T>(ask: () => Promise<T>): Promise<T> {
    const until = clock.now() + totalMs;
    for (;;) {
      try {
        return await ask();
      } catch (error) {
        if (!(error instanceof Unanswered) || clock.now() >= until) throw error;
      }
      await new Promise<void>((resolve) => clock.setTimeout(resolve, retryMs));
    }
  }

  async function api<T>(call: string, request: object): Promise<T & ApiAnswer> {
    const answer = await inbox.request(`$JS.API.${call}`, Buffer.from(JSON.stringify(request)), answerMs());
    const parsed = answer.json<T & ApiAnswer>();
    const { error } = parsed;
    // Of the server that was asked, as long as it knows no leader.
    if (error && (error.code ?? 0) >= 500) throw new Unanswered(error.description ?? "NATS has no leader for a stream");
    return parsed;
  }

  function byLeader(stream: string, request: object): Promise<Stored | undefined> {
    return insist(async () => {
      const { message, error } = await api<{ message?: ApiMessage }>(`STREAM.MSG.GET.${stream}`, request);
      if (message) {
        return { subject: message.subject, seq: message.seq, body: Buffer.from(message.data ?? "", "base64") };
      }
      if (error?.err_code === noMessage || error?.code === 404) return undefined;
      throw new Error(`NATS could not read ${stream}: ${error?.description ?? "no reason given"}`);
    });
  }

  function direct(stream: string, request: object, isLast: (answer: Incoming) => boolean): Promise<Incoming[]> {
    const body = Buffer.from(JSON.stringify(request));
    return inbox.requestAll(`$JS.API.DIRECT.GET.${stream}`, body, { timeoutMs: answerMs(), isLast });
  }

  function one(stream: string, request: object): Promise<Stored | undefined> {
    return insist(async () => {
      const [answer] = await direct(stream, request, () => true);
      const status = statusOf(answer);
      if (status === 404) return undefined;
      if (!answer || status !== 0) throw unexpected(stream, answer);
      return storedOf(answer);
    });
  }

  async function askState(stream: string): Promise<StreamState> {
    const { state, error } = await insist(() => api<{ state?: ApiState }>(`STREAM.INFO.${stream}`, {}));
    if (!state) throw new Error(`NATS has no stream ${stream}: ${error?.description ?? "no reason given"}`);
    return { first: Math.max(state.first_seq, 1), last: state.last_seq, messages: state.messages, bytes: state.bytes };
  }

  /** It begins after the call: the answer that is under way may be of before it. */
  function stateOf(stream: string): Promise<StreamState> {
    const known = states.get(stream);
    if (!known) {
      const running = askState(stream);
      const entry: { running: Promise<StreamState>; next: Promise<StreamState> | undefined } = {
        running,
        next: undefined,
      };
      states.set(stream, entry);
      const forget = (): void => {
        if (!entry.next) states.delete(stream);
      };
      running.then(forget, forget);
      return running;
    }
    const again = (): Promise<StreamState> => {
      states.delete(stream);
      return stateOf(stream);
    };
    known.next ??= known.running.then(again, again);
    return known.next;
  }

  const nextByLeader = (stream: string, pattern: string, seq: number): Promise<Stored | undefined> =>
    byLeader(stream, { next_by_subj: pattern, seq: Math.max(seq, 1) });

  function next(stream: string, pattern: string, seq: number, batch: number): Promise<Stored[]> {
    return insist(async () => {
      const request = { next_by_subj: pattern, seq: Math.max(seq, 1), batch };
      const answers = await direct(stream, request, (each) => statusOf(each) !== 0);
      const end = answers.at(-1);
      const status = statusOf(end);
      if (status !== 204 && status !== 404) throw unexpected(stream, end);
      return answers.slice(0, -1).map(storedOf);
    });
  }

  return {
    last: (stream, subject) => one(stream, { last_by_subj: subject }),
    lastByLeader: (stream, subject) => byLeader(stream, { last_by_subj: subject }),
    nextByLeader,
    atByLeader: (stream, seq) => byLeader(stream, { seq }),
    at: (stream, seq) => one(stream, { seq }),
    next,
    async page(stream, pattern, { seq, batch, end }) {
      if (seq > end) return { found: [], upTo: end };
      const first = await nextByLeader(stream, pattern, seq);
      if (!first) return { found: [], upTo: end };
      const found = await next(stream, pattern, first.seq, batch);
      if (found.length === 0) found.push(first);
      const tail = found.at(-1)?.seq ?? first.seq;
      if (found.length >= batch) return { found, upTo: tail };
      const more = await nextByLeader(stream, pattern, tail + 1);
      if (!more) return { found, upTo: Math.max(tail, end) };
      found.push(more);
      return { found, upTo: more.seq };
    },
    lasts(stream, patterns, seq) {
      return insist(async () => {
        const request = { multi_last: patterns, ...(seq > 0 ? { seq } : {}) };
        const answers = await direct(stream, request, (each) => statusOf(each) !== 0);
        const end = answers.at(-1);
        const status = statusOf(end);
        if (status === 413) return "tooMany";
        const found = answers.slice(0, -1).map(storedOf);
        if (status === 404 && found.length === 0) return { found, upTo: 0 };
        if (status !== 204) throw unexpected(stream, end);
        // Where the server has cut the answer by its size, the rest is pending.
        if (Number(end?.headers?.get("Nats-Num-Pending") ?? 0) > 0)
          throw new Error(`NATS cut an answer of ${stream} short`);
        return { found, upTo: Number(end?.headers?.get("Nats-UpTo-Sequence")) };
      });
    },
    count(stream, pattern) {
      return insist(async () => {
        const request = { next_by_subj: pattern, seq: 1, batch: 1 };
        const answers = await direct(stream, request, (each) => statusOf(each) !== 0);
        const end = answers.at(-1);
        const status = statusOf(end);
        if (status === 404) return 0;
        if (status !== 204) throw unexpected(stream, end);
        return answers.length - 1 + Number(end?.headers?.get("Nats-Num-Pending") ?? 0);
      });
    },
    state: stateOf,
    async isLed(stream) {
      // Where nobody leads, one of the others answers; and one who leads does so for a while after he has lost them.
      const { state, cluster } = await api<{ state?: ApiState; cluster?: ApiCluster }>(`STREAM.INFO.${stream}`, {});
      if (!state || !cluster) return state !== undefined;
      const { leader = "", replicas = [] } = cluster;
      const heard = replicas.filter(({ active, offline = false }) => !offline && active < maxSilenceMs * 1e6);
      return leader !== "" && 2 * (heard.length + 1) > replicas.length + 1;
    },
  };
}

/** Between one who leads a stream and the others, who tell of themselves each second. */
const maxSilenceMs = 5000;

interface ApiAnswer {
  readonly error?: { readonly code?: number; readonly err_code?: number; readonly description?: string };
}
interface ApiMessage {
  readonly subject: string;
  readonly seq: number;
  readonly data?: string;
}
/** Absent where a server is alone. */
interface ApiCluster {
  readonly leader?: string;
  /** `active`: nanoseconds since the leader has heard of it. */
  readonly replicas?: readonly { readonly active: number; readonly offline?: boolean }[];
}
interface ApiState {
  readonly first_seq: number;
  readonly last_seq: number;
  readonly messages: number;
  readonly bytes: number;
}

const noMessage = 10_037;

/** 0 for a message. */
function statusOf(answer: Incoming | undefined): number {
  return answer && answer.data.length === 0 ? (answer.headers?.code ?? 0) : 0;
}

function unexpected(stream: string, answer: Incoming | undefined): Error {
  if (!answer || isNoResponders(answer)) return new Unanswered(`no server has ${stream} now`);
  const { code, description } = answer.headers ?? {};
  // A message that went while it was read, and what a server says that has just lost the stream.
  if (code === 404 || code === 500) return new Unanswered(`${stream}: ${description}`);
  return new Error(`NATS could not read ${stream}: ${code} ${description}`);
}

function storedOf(answer: Incoming): Stored {
  const { headers, data } = answer;
  return {
    subject: headers?.get("Nats-Subject") ?? "",
    seq: Number(headers?.get("Nats-Sequence")),
    body: Buffer.from(data.buffer, data.byteOffset, data.byteLength),
  };
}
