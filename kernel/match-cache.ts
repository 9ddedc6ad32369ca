/** A bounded cache of topic name -> who matches it. */
import { createShapedTopic, type FilterShape, isSameShape, shapedFilterOf } from "./filter-shape.ts";

export interface MatchCache<R> {
  get(topic: string): R | undefined;
  set(topic: string, result: R): void;
  delete(topic: string): void;
  /** Forgets what a topic filter with wildcards matches, and maybe more. */
  deleteMatching(filter: string): void;
}

/** The cache may weigh this many 8-byte words an entry on average, so that long topics or results can't fill the memory. */
const cacheWordsPerEntry = 32;
/** What it takes to find one topic by the filters of one shape. */
const wordsPerLink = 6;
/** Topics are found by so many shapes of filters, those that changed last: a fleet's filters have two or three. */
const maxShapes = 8;
/** Of more topics that one filter matches it is cheaper to forget all than to look for them. */
const maxMatching = 1000;

/** Topics that the filters of one key match: one, the common case, costs no Set; `crowded` are too many to list. */
type Bucket = string | Set<string> | typeof crowded;
const crowded = Symbol("crowded");

interface Generation<R> {
  readonly results: Map<string, R>;
  /** By the key of the filters that match. Topics that are forgotten by now may still be listed. */
  readonly buckets: Map<number, Bucket>;
}

/**
 * Two generations: a full young one becomes the old one and the old one is forgotten, save what was asked for meanwhile.
 * Nearly as good as forgetting the least recently used, without a list to keep.
 */
export function createMatchCache<R extends { readonly length: number }>(entries: number): MatchCache<R> {
  const half = Math.ceil(entries / 2);
  const reader = createShapedTopic();
  /** The one whose filter changed last comes first. All that is cached is listed by each of them. */
  const shapes: { readonly shape: FilterShape; readonly salt: number }[] = [];
  let salts = 0;
  let young = createGeneration<R>();
  let old = createGeneration<R>();
  let words = 0;

  function set(topic: string, result: R): void {
    if (half === 0) return;
    if (young.results.size >= half || words >= half * cacheWordsPerEntry) {
      old = young;
      young = createGeneration();
      words = 0;
    }
    words += result.length + (topic.length >> 3);
    young.results.set(topic, result);
    if (shapes.length > 0) list(topic);
  }

  function list(topic: string): void {
    reader.read(topic);
    for (const { shape, salt } of shapes) {
      const key = reader.keyIn(shape);
      if (key === undefined) continue;
      words += wordsPerLink;
      addTo(young.buckets, key ^ salt, topic);
    }
  }

  /** Both generations' bucket of a filter; undefined = all has to go. */
  function bucketsOf(filter: string): readonly Bucket[] | undefined {
    const shaped = shapedFilterOf(filter);
    if (!shaped) return undefined;
    const at = shapes.findIndex(({ shape }) => isSameShape(shape, shaped.shape));
    if (at < 0) {
      // From now on it is listed by this shape too, what is cached already is not.
      if (shapes.length === maxShapes) shapes.pop();
      salts = Math.imul(salts + 1, 0x9e3779b1);
      shapes.unshift({ shape: shaped.shape, salt: salts });
      return undefined;
    }
    const [known] = at === 0 ? shapes : shapes.splice(at, 1);
    if (known === undefined) return undefined;
    if (at > 0) shapes.unshift(known);
    const key = shaped.key ^ known.salt;
    return [young, old].flatMap(({ buckets }) => buckets.get(key) ?? []);
  }

  function clear(): void {
    if (young.results.size > 0) young = createGeneration();
    if (old.results.size > 0) old = createGeneration();
    words = 0;
  }

  function forget(topic: string): void {
    young.results.delete(topic);
    old.results.delete(topic);
  }

  return {
    get(topic) {
      const result = young.results.get(topic);
      if (result !== undefined) return result;
      const before = old.results.get(topic);
      if (before !== undefined) set(topic, before);
      return before;
    },
    set,
    delete: forget,
    deleteMatching(filter) {
      if (half === 0) return;
      const buckets = bucketsOf(filter);
      if (buckets === undefined || buckets.includes(crowded)) {
        clear();
        return;
      }
      for (const bucket of buckets) {
        if (typeof bucket === "string") forget(bucket);
        else if (typeof bucket === "object") for (const topic of bucket) forget(topic);
      }
    },
  };
}

function createGeneration<R>(): Generation<R> {
  return { results: new Map(), buckets: new Map() };
}

function addTo(buckets: Map<number, Bucket>, key: number, topic: string): void {
  const bucket = buckets.get(key);
  if (bucket === undefined) buckets.set(key, topic);
  else if (typeof bucket === "string") {
    if (bucket !== topic) buckets.set(key, new Set([bucket, topic]));
  } else if (typeof bucket === "object") {
    bucket.add(topic);
    if (bucket.size > maxMatching) buckets.set(key, crowded);
  }
}
