/** MQTT 5's topic aliases of one connection, each direction for itself [MQTT-3.3.2-7]: numbers that stand for topics. */

/** From the client: it says which number means which topic. */
export interface TopicAliasesIn {
  /** The topic that a PUBLISH is for, once its alias is noted; undefined where the alias has no topic yet. */
  resolve(topic: string, alias: number): string | undefined;
}

export function createTopicAliasesIn(): TopicAliasesIn {
  const topics = new Map<number, string>();
  return {
    resolve(topic, alias) {
      if (topic === "") return topics.get(alias);
      topics.set(alias, topic);
      return topic;
    },
  };
}

/** To the client: the first topics that it gets have the numbers, as long as there are some. */
export interface TopicAliasesOut {
  /** @returns undefined where the topic has no number, and none is left */
  of(topic: string): { readonly id: number; readonly isNew: boolean } | undefined;
  /** The client has been sent both, and knows the number. */
  known(topic: string): void;
}

/** @param maximum the client's topic alias maximum, or what we remember at most */
export function createTopicAliasesOut(maximum: number): TopicAliasesOut {
  const aliases = new Map<string, { readonly id: number; readonly isNew: false }>();
  return {
    of(topic) {
      const alias = aliases.get(topic);
      if (alias) return alias;
      return aliases.size < maximum ? { id: aliases.size + 1, isNew: true } : undefined;
    },
    known(topic) {
      if (!aliases.has(topic)) aliases.set(topic, { id: aliases.size + 1, isNew: false });
    },
  };
}
