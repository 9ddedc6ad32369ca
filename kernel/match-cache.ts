/**
 * A bounded cache of topic name -> who matches it. In a full one what was not asked for since the hand came by last gives
 * way (the clock algorithm), and few of what is new are let in: what comes often soon is, and of more topic names than fit,
 * however they take turns, most keep their place rather than push each other out.
 */
import { createShapedTopic, type FilterShape, isSameShape, shapedFilterOf } from "./filter-shape.ts";

export interface MatchCache<R> {
  get(topic: string): R | undefined;
  set(topic: string, result: R): void;
  delete(topic: string): void;
  /** Forgets what a topic filter with wildcards matches, and maybe more. */
  deleteMatching(filter: string): void;
}

/** The cache may weigh this many 8-byte words an entry on average, so that long topics or results can't fill the memory. */
const wordsPerEntry = 32;
/** What it takes to find one topic by the filters of one shape. */
const wordsPerLink = 6;
/** Topics are found by so many shapes of filters, those that changed last: a fleet's filters have two or three. */
const maxShapes = 8;
/** Of more topics that one filter matches it is cheaper to forget all than to look for them. */
const maxMatching = 1000;
/** In a full cache one of so many that are not in it is let in. */
const admitted = 8;

/** The places of the topics that filters of one key match: one, the common case, costs no Set. */
type Bucket = number | Set<number>;

export function createMatchCache<R extends { readonly length: number }>(entries: number): MatchCache<R> {
  const maxWords = entries * wordsPerEntry;
  const reader = createShapedTopic();
  const places = new Map<string, number>();
  // By place; undefined = it is free.
  const topics: string[] = [];
  const results: (R | undefined)[] = [];
  const isAsked = new Uint8Array(entries);
  const free: number[] = [];
  /** The one whose filter changed last comes first. All that is cached is listed by each of them. */
  const shapes: { readonly shape: FilterShape; readonly salt: number }[] = [];
  let salts = 0;
  /** By the key of the filters that match, and their shape's salt. */
  const buckets = new Map<number, Bucket>();
  let hand = 0;
  let words = 0;
  let refused = 0;

  const weigh = (topic: string, result: R): number =>
    result.length + (topic.length >> 3) + shapes.length * wordsPerLink;

  function set(topic: string, result: R): void {
    if (entries === 0) return;
    forget(topic);
    const weight = weigh(topic, result);
    if (weight > maxWords / 2) return;
    if (!fits(weight)) {
      if (++refused % admitted > 0) return;
      do {
        turn();
      } while (!fits(weight));
    }
    const place = free.pop() ?? topics.length;
    places.set(topic, place);
    topics[place] = topic;
    results[place] = result;
    isAsked[place] = 0;
    words += weight;
    if (shapes.length > 0) forEachKey(topic, (key) => addTo(buckets, key, place));
  }

  function fits(weight: number): boolean {
    return places.size < entries && words + weight <= maxWords;
  }

  /** One place becomes free. */
  function turn(): void {
    for (;;) {
      hand = hand + 1 < topics.length ? hand + 1 : 0;
      if (results[hand] === undefined) continue;
      if (isAsked[hand] === 0) break;
      isAsked[hand] = 0;
    }
    vacate(hand);
  }

  function vacate(place: number): void {
    const topic = topics[place] ?? "";
    const result = results[place];
    if (result === undefined) return;
    if (shapes.length > 0) forEachKey(topic, (key) => removeFrom(buckets, key, place));
    words -= weigh(topic, result);
    places.delete(topic);
    topics[place] = "";
    results[place] = undefined;
    free.push(place);
  }

  function forEachKey(topic: string, act: (key: number) => void): void {
    reader.read(topic);
    for (const { shape, salt } of shapes) {
      const key = reader.keyIn(shape);
      if (key !== undefined) act(key ^ salt);
    }
  }

  /** The places that a filter matches, none of them as -1; undefined = all has to go. */
  function bucketOf(filter: string): Bucket | undefined {
    const shaped = shapedFilterOf(filter);
    if (!shaped) return undefined;
    const at = shapes.findIndex(({ shape }) => isSameShape(shape, shaped.shape));
    const known = shapes[at];
    if (known === undefined) return undefined;
    if (at > 0) {
      shapes.splice(at, 1);
      shapes.unshift(known);
    }
    return buckets.get(shaped.key ^ known.salt) ?? -1;
  }

  /** From now on topics are listed by the shape of this filter too. Nothing may be cached. */
  function learn(filter: string): void {
    const shape = shapedFilterOf(filter)?.shape;
    if (!shape || shapes.some((known) => isSameShape(known.shape, shape))) return;
    if (shapes.length === maxShapes) shapes.pop();
    salts = Math.imul(salts + 1, 0x9e3779b1);
    shapes.unshift({ shape, salt: salts });
  }

  function clear(): void {
    if (places.size > 0) places.clear();
    buckets.clear();
    topics.length = 0;
    results.length = 0;
    free.length = 0;
    hand = 0;
    words = 0;
  }

  function forget(topic: string): void {
    const place = places.get(topic);
    if (place !== undefined) vacate(place);
  }

  return {
    get(topic) {
      const place = places.get(topic);
      if (place === undefined) return undefined;
      isAsked[place] = 1;
      return results[place];
    },
    set,
    delete: forget,
    deleteMatching(filter) {
      if (entries === 0) return;
      const bucket = bucketOf(filter);
      if (bucket === undefined || (typeof bucket === "object" && bucket.size > maxMatching)) {
        clear();
        learn(filter);
      } else if (typeof bucket === "object") {
        for (const place of bucket) vacate(place);
      } else if (bucket >= 0) vacate(bucket);
    },
  };
}

function addTo(buckets: Map<number, Bucket>, key: number, place: number): void {
  const bucket = buckets.get(key);
  if (bucket === undefined) buckets.set(key, place);
  else if (typeof bucket === "object") bucket.add(place);
  else if (bucket !== place) buckets.set(key, new Set([bucket, place]));
}

function removeFrom(buckets: Map<number, Bucket>, key: number, place: number): void {
  const bucket = buckets.get(key);
  if (bucket === place) buckets.delete(key);
  else if (typeof bucket === "object" && bucket.delete(place) && bucket.size === 0) buckets.delete(key);
}
