import { LRUCache } from "lru-cache";
import { compilePattern } from "./pattern.ts";
import type { Pattern } from "./pattern.ts";

/** The options of the filter kind, as schema.json describes them, defaults applied. */
export interface Config {
  readonly matchIndex: number;
  readonly route: readonly { readonly name: string; readonly matchExpr: string }[];
  readonly policies: readonly Policy[];
  readonly setKV?: { readonly topic?: string; readonly headers?: string };
  readonly onUnmatched: "discard" | "default" | "fault";
  readonly cacheSize: number;
}

export interface Policy {
  readonly name: string;
  readonly topicIndex: number;
  readonly route: readonly { readonly topic: string; readonly exprs: readonly string[] }[];
  /** Level -> header name. */
  readonly headers: Readonly<Record<string, string>>;
}

/** What a topic became. Frozen: it is shared by all messages of that topic. */
export interface Mapped {
  readonly topic: string;
  readonly headers: Readonly<Record<string, string>>;
}

/** Why a topic became nothing. */
export interface Unmapped {
  readonly topic: undefined;
  readonly why: "tooShort" | "noRoute" | "noTopic";
  /** The level that was looked at, from 0. */
  readonly index: number;
  /** What it holds; undefined where the topic has too few levels. */
  readonly level: string | undefined;
  readonly policy: string | undefined;
}

export interface Mapper {
  map(topic: string): Mapped | Unmapped;
}

interface CompiledPolicy {
  readonly name: string;
  readonly topicIndex: number;
  readonly route: readonly { readonly topic: string; readonly patterns: readonly Pattern[] }[];
  readonly headers: readonly (readonly [level: number, name: string])[];
}

/** Longer topics are worked out each time, so that the cache's memory has a bound that its entries give. */
const longestCached = 1024;

/** True where the options say that topics are left as they are. */
export function isEmpty(config: Config): boolean {
  return config.route.length === 0 && config.policies.length === 0;
}

/** Levels from the first that is not empty: `/a/b` and `//a/b` have the same as `a/b`; `/` has none. */
export function levelsOf(topic: string): string[] {
  let start = 0;
  while (start < topic.length && topic.charCodeAt(start) === 0x2f) start++;
  return start === topic.length ? [] : topic.slice(start).split("/");
}

/** `onMiss` is called for each topic that has to be worked out because the cache does not hold it. */
export function createMapper(config: Config, onMiss: () => void): Mapper {
  const policies = new Map(config.policies.map((policy) => [policy.name, compilePolicy(policy)]));
  const routes = config.route.map(({ name, matchExpr }) => ({
    pattern: compilePattern(matchExpr),
    policy: policies.get(name),
  }));
  const cache = config.cacheSize > 0 ? new LRUCache<string, Mapped | Unmapped>({ max: config.cacheSize }) : undefined;
  const { matchIndex } = config;

  function workOut(topic: string): Mapped | Unmapped {
    const levels = levelsOf(topic);
    const level = levels[matchIndex];
    if (level === undefined) return unmapped("tooShort", matchIndex, undefined, undefined);
    const policy = routes.find((route) => route.pattern.test(level))?.policy;
    if (!policy) return unmapped("noRoute", matchIndex, level, undefined);
    return applyPolicy(policy, levels);
  }

  return {
    map(topic) {
      const known = cache?.get(topic);
      if (known) return known;
      onMiss();
      const found = workOut(topic);
      if (topic.length <= longestCached) cache?.set(topic, found);
      return found;
    },
  };
}

function compilePolicy(policy: Policy): CompiledPolicy {
  // Entries of one topic are one entry, at the place of the first, as in Easegress.
  const route = new Map<string, Pattern[]>();
  for (const { topic, exprs } of policy.route) {
    const patterns = route.get(topic) ?? [];
    route.set(topic, patterns);
    patterns.push(...exprs.map(compilePattern));
  }
  return {
    name: policy.name,
    topicIndex: policy.topicIndex,
    route: [...route].map(([topic, patterns]) => ({ topic, patterns })),
    headers: Object.entries(policy.headers)
      .map(([level, name]) => [Number(level), name] as const)
      .sort(([a], [b]) => a - b),
  };
}

function applyPolicy(policy: CompiledPolicy, levels: readonly string[]): Mapped | Unmapped {
  const level = levels[policy.topicIndex];
  if (level === undefined) return unmapped("tooShort", policy.topicIndex, undefined, policy.name);
  const entry = policy.route.find(({ patterns }) => patterns.some((pattern) => pattern.test(level)));
  if (!entry) return unmapped("noTopic", policy.topicIndex, level, policy.name);
  const headers: [string, string][] = [];
  for (const [index, name] of policy.headers) {
    const value = levels[index];
    if (value !== undefined) headers.push([name, value]);
  }
  // fromEntries makes own properties even of names like __proto__.
  return Object.freeze({ topic: entry.topic, headers: Object.freeze(Object.fromEntries(headers)) });
}

function unmapped(
  why: Unmapped["why"],
  index: number,
  level: string | undefined,
  policy: string | undefined,
): Unmapped {
  return Object.freeze({ topic: undefined, why, index, level, policy });
}

/** One line for logs, errors and the command line. */
export function describeUnmapped({ why, index, level, policy }: Unmapped): string {
  const inPolicy = policy === undefined ? "" : `policy ${JSON.stringify(policy)}: `;
  const shown = level === undefined ? "" : JSON.stringify(level.length > 100 ? `${level.slice(0, 100)}...` : level);
  if (why === "noRoute") return `level ${index} (matchIndex), ${shown}, matches no route's matchExpr`;
  if (why === "noTopic") return `${inPolicy}level ${index} (topicIndex), ${shown}, matches none of the route's exprs`;
  const option = policy === undefined ? "matchIndex" : "topicIndex";
  return `${inPolicy}the topic has no level ${index} (${option}; the first non-empty level is 0)`;
}
