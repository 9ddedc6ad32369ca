/** A bounded cache of topic name -> who matches it. */
export interface MatchCache<R> {
  get(topic: string): R | undefined;
  set(topic: string, result: R): void;
  delete(topic: string): void;
  clear(): void;
}

/** The cache may weigh this many 8-byte words an entry on average, so that long topics or results can't fill the memory. */
const cacheWordsPerEntry = 32;

/**
 * Two generations: a full young one becomes the old one and the old one is forgotten, save what was asked for meanwhile.
 * Nearly as good as forgetting the least recently used, without a list to keep.
 */
export function createMatchCache<R extends { readonly length: number }>(entries: number): MatchCache<R> {
  const half = Math.ceil(entries / 2);
  let young = new Map<string, R>();
  let old = new Map<string, R>();
  let words = 0;

  function set(topic: string, result: R): void {
    if (half === 0) return;
    if (young.size >= half || words >= half * cacheWordsPerEntry) {
      old = young;
      young = new Map();
      words = 0;
    }
    words += result.length + (topic.length >> 3);
    young.set(topic, result);
  }

  return {
    get(topic) {
      const result = young.get(topic);
      if (result !== undefined) return result;
      const before = old.get(topic);
      if (before !== undefined) set(topic, before);
      return before;
    },
    set,
    delete(topic) {
      young.delete(topic);
      old.delete(topic);
    },
    clear() {
      if (young.size > 0) young = new Map();
      if (old.size > 0) old = new Map();
      words = 0;
    },
  };
}
