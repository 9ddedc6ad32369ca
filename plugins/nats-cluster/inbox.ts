/** Answers to what this node asks NATS: one subscription for all of them, each with a number of its own. */
import { randomBytes } from "node:crypto";
import type { Clock } from "@sluice/kernel";
import type { Connection, Incoming } from "./connection.ts";

export interface Inbox {
  /** A subject for answers; each is handed to `handler` until `forget`. */
  open(handler: (answer: Incoming) => void): { readonly reply: string; readonly forget: () => void };
  /** The first answer. Rejects after `timeoutMs`, where nobody listens on the subject, and where the connection is lost. */
  request(subject: string, body: Uint8Array, timeoutMs: number): Promise<Incoming>;
  /** All answers up to the one for which `isLast` is true, that one included. Rejects as {@link request} does. */
  requestAll(
    subject: string,
    body: Uint8Array,
    o: { readonly timeoutMs: number; readonly isLast: (answer: Incoming) => boolean },
  ): Promise<Incoming[]>;
  /** Requests that wait for an answer. */
  readonly size: number;
}

/** Requests under way at once; more wait for one of them to end. */
const maxRequests = 256;
/** Those that wait; one more is refused. */
const maxWaiting = 100_000;

/** No answer, or none that says anything: the same request may be answered later. */
export class Unanswered extends Error {}

export function createInbox(connection: Connection, clock: Clock): Inbox {
  const prefix = `_INBOX.${randomBytes(9).toString("base64url")}`;
  const handlers = new Map<number, (answer: Incoming) => void>();
  const running = new Set<(reason: Error) => void>();
  const waiting: (() => void)[] = [];
  let last = 0;

  connection.subscribe(`${prefix}.*`, (message) => {
    handlers.get(Number(message.subject.slice(prefix.length + 1)))?.(message);
  });
  connection.onChange((isUp) => {
    if (isUp) return;
    for (const fail of running) fail(new Unanswered(connection.problem ?? "the connection was lost"));
  });

  function open(handler: (answer: Incoming) => void): { reply: string; forget: () => void } {
    const id = ++last;
    handlers.set(id, handler);
    return { reply: `${prefix}.${id}`, forget: () => void handlers.delete(id) };
  }

  async function requestAll(
    subject: string,
    body: Uint8Array,
    { timeoutMs, isLast }: { timeoutMs: number; isLast: (answer: Incoming) => boolean },
  ): Promise<Incoming[]> {
    if (running.size >= maxRequests) {
      if (waiting.length >= maxWaiting) throw new Unanswered("too many requests wait for NATS");
      await new Promise<void>((resolve) => waiting.push(resolve));
    }
    const answers: Incoming[] = [];
    const { promise, resolve, reject } = Promise.withResolvers<Incoming[]>();
    const { reply, forget } = open((answer) => {
      answers.push(answer);
      if (isNoResponders(answer)) reject(new Unanswered(`nobody answers on ${subject}`));
      else if (isLast(answer)) resolve(answers);
    });
    const timer = clock.setTimeout(
      () => reject(new Unanswered(`no answer on ${subject} in ${timeoutMs} ms`)),
      timeoutMs,
    );
    running.add(reject);
    try {
      if (!connection.publish(subject, body, reply))
        throw new Unanswered(connection.problem ?? "there is no connection");
      return await promise;
    } finally {
      timer.clear();
      forget();
      running.delete(reject);
      waiting.shift()?.();
    }
  }

  return {
    open,
    requestAll,
    async request(subject, body, timeoutMs) {
      const [answer] = await requestAll(subject, body, { timeoutMs, isLast: () => true });
      if (!answer) throw new Unanswered(`no answer on ${subject}`);
      return answer;
    },
    get size() {
      return running.size + waiting.length;
    },
  };
}

/** The server's own answer where nothing is subscribed to a subject. */
export function isNoResponders(answer: Incoming): boolean {
  return answer.data.length === 0 && answer.headers?.code === 503;
}
