/**
 * How many clients at the other nodes a message matches: they are asked, all of them, once for all messages of a moment.
 * For who wants to know, and not for each PUBLISH: nothing is sent to nodes that no client of theirs wants otherwise.
 */
import type { ClusterEngine } from "./cluster-engine.ts";

export interface Census {
  /** Never rejects. A second at most. */
  count(topic: string): Promise<CensusResult>;
}

export interface CensusResult {
  readonly matched: number;
  /** Every node that is up has answered. */
  readonly isWhole: boolean;
}

/** How long a node has. What it does not answer by then is not counted. */
const answerMs = 1000;

/** How long a node that has not answered is not asked again. */
const silentMs = 5000;

/** Of one request: topics have 512 bytes, and JSON may make six of one. */
const maxTopics = 100;

/** Beyond it nobody is asked. */
const maxWaiting = 10_000;

const unknown: CensusResult = Object.freeze({ matched: 0, isWhole: false });
const alone: CensusResult = Object.freeze({ matched: 0, isWhole: true });

export function createCensus(proxy: string, engine: ClusterEngine): Census {
  const silentUntil = new Map<string, number>();
  let waiting: { readonly topic: string; readonly resolve: (result: CensusResult) => void }[] = [];
  let isAsking = false;

  /** Undefined: it does not say. */
  async function ask(node: string, body: Buffer): Promise<readonly number[] | undefined> {
    try {
      return JSON.parse((await engine.control.request(node, "count", body, answerMs)).toString()) as number[];
    } catch {
      silentUntil.set(node, performance.now() + silentMs);
      return undefined;
    }
  }

  async function askAll(topics: readonly string[]): Promise<CensusResult[]> {
    const now = performance.now();
    const up = engine.peers().filter(({ isUp }) => isUp);
    for (const [node, until] of silentUntil) if (until <= now) silentUntil.delete(node);
    const asked = up.filter(({ id }) => !silentUntil.has(id));
    const body = Buffer.from(JSON.stringify({ proxy, topics }));
    const answers = await Promise.all(asked.map(({ id }) => ask(id, body)));
    const isWhole = asked.length === up.length && answers.every((answer) => answer !== undefined);
    return topics.map((_, at) => ({
      matched: answers.reduce((sum, answer) => sum + (answer?.[at] ?? 0), 0),
      isWhole,
    }));
  }

  /** One request a node at a time: what is asked for meanwhile goes with the next. */
  async function run(): Promise<void> {
    if (isAsking) return;
    isAsking = true;
    // What else is published in this turn.
    await Promise.resolve();
    while (waiting.length > 0) {
      const round = waiting.slice(0, maxTopics);
      waiting = waiting.slice(maxTopics);
      const results = await askAll(round.map(({ topic }) => topic));
      for (const [at, { resolve }] of round.entries()) resolve(results[at] ?? unknown);
    }
    isAsking = false;
  }

  return {
    count(topic) {
      if (!engine.health().live || waiting.length >= maxWaiting) return Promise.resolve(unknown);
      if (!engine.peers().some(({ isUp }) => isUp)) return Promise.resolve(alone);
      const { promise, resolve } = Promise.withResolvers<CensusResult>();
      waiting.push({ topic, resolve });
      void run();
      return promise;
    },
  };
}
