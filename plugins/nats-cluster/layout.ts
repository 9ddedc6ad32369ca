/**
 * Where everything lies in NATS: names of streams, and subjects. A subject says namespace, sort, shard, proxy and topic or
 * client, so that two proxies, or two clusters in one account, never meet. Shards are chosen by a hash that must stay what
 * it is: another would look for what is stored in the wrong stream.
 */
import { hash } from "node:crypto";
import type { ClusterSelector } from "@sluice/kernel/cluster";
import { escapeLevel, filterSubject, subjectProblem, subjectTopic, topicSubject } from "./subjects.ts";

export interface Layout {
  readonly shards: number;
  readonly streams: {
    log(shard: number): string;
    sessions(shard: number): string;
    retained(shard: number): string;
    wills: string;
  };
  /** Words between nodes. */
  readonly control: { all: string; heartbeat: string; node(id: string): string };
  /** A subject of each log stream for a message that is there to be found. */
  markOf(shard: number): string;
  /** There for each incarnation that has ever had a will; `*` for all of them. */
  willsOf(incarnation: string): string;
  of(proxy: string): ProxyLayout;
}

export interface Address {
  readonly shard: number;
  readonly subject: string;
}

/** What a selector comes to: `shard` undefined = any of them. */
export interface Selection {
  readonly shard: number | undefined;
  /** Without namespace, sort and shard. */
  readonly suffix: string;
}

export interface ProxyLayout {
  readonly proxy: string;
  /** The messages of a topic, or for one client, in the log. */
  message(topic: string, to: string | undefined): Address;
  /** The same, as they are sent to nodes. */
  live(topic: string, to: string | undefined): string;
  /** @throws Error for a filter that is too long or too deep */
  selection(selector: ClusterSelector): Selection;
  logSubject(shard: number, suffix: string): string;
  liveSubject(selection: Selection): string;
  /** Everything of the proxy. */
  readonly everything: Selection;
  /** Undefined for a message that is for one client. */
  topicOf(subject: string): string | undefined;
  /** The records of one session: `<base>.own`, `<base>.sub`. */
  session(clientId: string): { readonly shard: number; readonly base: string };
  /** `key` of every session of a shard. */
  sessionsOf(shard: number, key: string): string;
  retained(topic: string): Address;
  retainedMatching(shard: number, topicFilter: string): string;
  /** All of a shard. */
  retainedOf(shard: number): string;
  /** The one shard of a filter without wildcards; undefined = all. */
  retainedShard(topicFilter: string): number | undefined;
  will(incarnation: string, clientId: string): string;
  willsOf(incarnation: string): string;
}

export function createLayout(namespace: string, shards: number): Layout {
  const shardOf = (proxy: string, id: string): number => fnv1a(`${proxy}\0${id}`) % shards;

  function ofProxy(proxy: string): ProxyLayout {
    const name = escapeLevel(proxy);
    /** Tokens before the plane: namespace, sort, shard, proxy. */
    const before = 4;

    function suffixOf(topic: string, to: string | undefined): string {
      return to === undefined ? `${name}.${topicSubject(topic)}` : `${name}.c.${idOf(to)}`;
    }
    function message(topic: string, to: string | undefined): Address {
      const shard = shardOf(proxy, to === undefined ? `t${topic}` : `c${to}`);
      return { shard, subject: `${namespace}.m.${shard}.${suffixOf(topic, to)}` };
    }
    return {
      proxy,
      message,
      live(topic, to) {
        const shard = shardOf(proxy, to === undefined ? `t${topic}` : `c${to}`);
        return `${namespace}.v.${shard}.${suffixOf(topic, to)}`;
      },
      selection(selector) {
        if ("clientId" in selector) {
          return { shard: shardOf(proxy, `c${selector.clientId}`), suffix: `${name}.c.${idOf(selector.clientId)}` };
        }
        const { topicFilter } = selector;
        const problem = subjectProblem(topicFilter);
        if (problem !== undefined) throw new Error(`the topic filter can't be used in a cluster: ${problem}`);
        const shard = hasWildcard(topicFilter) ? undefined : shardOf(proxy, `t${topicFilter}`);
        return { shard, suffix: `${name}.${filterSubject(topicFilter)}` };
      },
      logSubject: (shard, suffix) => `${namespace}.m.${shard}.${suffix}`,
      liveSubject: ({ shard, suffix }) => `${namespace}.v.${shard ?? "*"}.${suffix}`,
      everything: { shard: undefined, suffix: `${name}.>` },
      topicOf(subject) {
        let at = 0;
        for (let token = 0; token < before; token++) at = subject.indexOf(".", at) + 1;
        return subject.startsWith("c.", at) ? undefined : subjectTopic(subject.slice(at));
      },
      session(clientId) {
        const shard = shardOf(proxy, clientId);
        return { shard, base: `${namespace}.s.${shard}.${name}.${idOf(clientId)}` };
      },
      sessionsOf: (shard, key) => `${namespace}.s.${shard}.${name}.*.${key}`,
      retained(topic) {
        const shard = shardOf(proxy, topic);
        return { shard, subject: `${namespace}.r.${shard}.${name}.${topicSubject(topic)}` };
      },
      retainedMatching: (shard, topicFilter) => `${namespace}.r.${shard}.${name}.${filterSubject(topicFilter)}`,
      retainedOf: (shard) => `${namespace}.r.${shard}.${name}.>`,
      retainedShard: (topicFilter) => (hasWildcard(topicFilter) ? undefined : shardOf(proxy, topicFilter)),
      will: (incarnation, clientId) => `${namespace}.w.${incarnation}.${name}.${idOf(clientId)}`,
      willsOf: (incarnation) => `${namespace}.w.${incarnation}.${name}.>`,
    };
  }

  return {
    shards,
    streams: {
      log: (shard) => `${namespace}_LOG_${shard}`,
      sessions: (shard) => `${namespace}_SES_${shard}`,
      retained: (shard) => `${namespace}_RET_${shard}`,
      wills: `${namespace}_WILL`,
    },
    control: {
      all: `${namespace}.c.all`,
      heartbeat: `${namespace}.c.beat`,
      node: (id) => `${namespace}.c.n.${escapeLevel(id)}`,
    },
    markOf: (shard) => `${namespace}.m.${shard}.~`,
    willsOf: (incarnation) => `${namespace}.w.${incarnation}`,
    of: ofProxy,
  };
}

function hasWildcard(topicFilter: string): boolean {
  return topicFilter.includes("+") || topicFilter.includes("#");
}

/** Of 128 bits, so that client ids of any length and any characters are short tokens. */
function idOf(clientId: string): string {
  return hash("sha256", clientId, "base64url").slice(0, 22);
}

function fnv1a(text: string): number {
  let value = 0x811c9dc5;
  for (let at = 0; at < text.length; at++) {
    value ^= text.charCodeAt(at);
    value = Math.imul(value, 0x01000193);
  }
  // The low bits alone are poor.
  return (value ^ (value >>> 15)) >>> 0;
}
