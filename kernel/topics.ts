/**
 * Topic names and topic filters: what is valid, what matches what, and the index that finds a message's subscribers.
 *
 * The index keeps filters without wildcards in a Map, since most are, and the rest in a trie by topic level. Results are
 * cached by topic name; a change of a plain filter drops its own topic's entry, a change of a wildcard filter those that it
 * matches (and rarely more), so that a match never misses what was subscribed before it.
 */

import { createMatchCache } from "./match-cache.ts";

/** A topic filter may have this many levels: the trie's depth, and the recursion of a match, are bounded by it. */
export const maxFilterLevels = 128;

/** Lengths are sent in two bytes [MQTT-1.5.3]. */
const maxTopicBytes = 65_535;

const sharedPrefix = "$share/";
const hash = 0x23;
const plus = 0x2b;
const dollar = 0x24;

/** Why `topic` is not a valid topic name; undefined = it is one. */
export function topicNameProblem(topic: string): string | undefined {
  if (topic.includes("+") || topic.includes("#")) {
    return "a topic name must not contain the wildcards + and # [MQTT-4.7.1-1]";
  }
  return stringProblem("a topic name", topic);
}

/**
 * Why `filter` is not a valid topic filter, which may be `$share/group/filter`; undefined = it is one. Beyond MQTT's rules
 * it may have at most {@link maxFilterLevels} levels.
 */
export function topicFilterProblem(filter: string): string | undefined {
  const problem = stringProblem("a topic filter", filter);
  if (problem !== undefined) return problem;
  if (!filter.startsWith(sharedPrefix)) return levelsProblem(filter);
  const shared = parseShared(filter);
  if (!shared) return "a shared subscription is $share/group/filter, none of them empty [MQTT-4.8.2-1]";
  if (/[+#]/.test(shared.group)) return "the group of a shared subscription must not contain + or # [MQTT-4.8.2-2]";
  return levelsProblem(shared.topicFilter);
}

/** The two parts of `$share/group/filter`; undefined where it is no shared subscription, or a part is missing. */
export function parseShared(filter: string): { group: string; topicFilter: string } | undefined {
  if (!filter.startsWith(sharedPrefix)) return undefined;
  const end = filter.indexOf("/", sharedPrefix.length);
  if (end <= sharedPrefix.length || end === filter.length - 1) return undefined;
  return { group: filter.slice(sharedPrefix.length, end), topicFilter: filter.slice(end + 1) };
}

function levelsProblem(filter: string): string | undefined {
  let levels = 1;
  for (let at = 0; at < filter.length; at++) {
    const char = filter.charCodeAt(at);
    if (char === 0x2f) {
      levels++;
    } else if (char === hash || char === plus) {
      const startsLevel = at === 0 || filter[at - 1] === "/";
      if (char === hash && !(startsLevel && at === filter.length - 1)) {
        return "# must be the last level of a topic filter and stand alone in it [MQTT-4.7.1-2]";
      }
      if (char === plus && !(startsLevel && (at === filter.length - 1 || filter[at + 1] === "/"))) {
        return "+ must stand alone in its level of a topic filter [MQTT-4.7.1-3]";
      }
    }
  }
  if (levels > maxFilterLevels) return `a topic filter has at most ${maxFilterLevels} levels, not ${levels}`;
  return undefined;
}

/** What topic names and topic filters have in common. */
function stringProblem(what: string, text: string): string | undefined {
  if (text === "") return `${what} must not be empty [MQTT-4.7.3-1]`;
  if (text.includes("\u0000")) return `${what} must not contain U+0000 [MQTT-4.7.3-2]`;
  if (!text.isWellFormed()) return `${what} must not contain lone surrogates [MQTT-1.5.3-1]`;
  // A UTF-16 unit takes at most three bytes, so that only long ones need counting.
  if (text.length * 3 > maxTopicBytes && Buffer.byteLength(text) > maxTopicBytes) {
    return `${what} must not be longer than ${maxTopicBytes} bytes [MQTT-4.7.3-3]`;
  }
  return undefined;
}

/** Whether a valid topic filter matches a valid topic name. To match many filters, use a {@link TopicIndex}. */
export function matches(filter: string, topic: string): boolean {
  const first = filter.charCodeAt(0);
  if (topic.charCodeAt(0) === dollar && (first === hash || first === plus)) return false; // [MQTT-4.7.2-1]
  let filterAt = 0;
  let topicAt = 0;
  for (;;) {
    const filterEnd = levelEnd(filter, filterAt);
    const topicEnd = levelEnd(topic, topicAt);
    if (filter.charCodeAt(filterAt) === hash) return true;
    const same =
      filter.charCodeAt(filterAt) === plus ||
      (filterEnd - filterAt === topicEnd - topicAt && topic.startsWith(filter.slice(filterAt, filterEnd), topicAt));
    if (!same) return false;
    if (filterEnd === filter.length) return topicEnd === topic.length;
    // `sport/#` also matches its parent level, `sport` (MQTT 4.7.1.2).
    if (topicEnd === topic.length) return filterEnd + 2 === filter.length && filter.charCodeAt(filterEnd + 1) === hash;
    filterAt = filterEnd + 1;
    topicAt = topicEnd + 1;
  }
}

function levelEnd(text: string, from: number): number {
  const end = text.indexOf("/", from);
  return end < 0 ? text.length : end;
}

export interface Subscriber<K, V> {
  readonly key: K;
  readonly value: V;
}

/** Finds the subscribers of a topic name. `K` identifies a subscriber, `V` is what it subscribed with. */
export interface TopicIndex<K, V> {
  /** Adds a subscription, or replaces its value. `filter` has passed {@link topicFilterProblem}. */
  set(filter: string, key: K, value: V): void;
  /** False: there was no such subscription. */
  delete(filter: string, key: K): boolean;
  /**
   * Every subscriber with a matching topic filter, once; where several of its filters match, `prefer` has picked the value.
   * The array is shared and cached: do not change it. It stays as it is when subscriptions change later.
   */
  match(topic: string): readonly Subscriber<K, V>[];
  /** Subscriptions: pairs of topic filter and key. */
  readonly size: number;
}

/** One topic filter's subscribers. A single one, the common case, costs no Map. */
type Slot<K, V> = Subscriber<K, V> | Map<K, Subscriber<K, V>>;

/** One level of the wildcard filters. A single child, the common case, costs no Map. */
interface Node<K, V> {
  readonly level: string;
  children: Node<K, V> | Map<string, Node<K, V>> | undefined;
  /** The child for `+`. */
  plus: Node<K, V> | undefined;
  /** Subscribers of the filter that ends here. */
  here: Slot<K, V> | undefined;
  /** Subscribers of the filter that goes on with `#` and so ends. */
  rest: Slot<K, V> | undefined;
}

/**
 * `prefer` picks the value for a subscriber with several matching filters (it may also make a third one); `cacheSize` is
 * in topic names, 0 = no cache.
 */
export function createTopicIndex<K, V>(options: { prefer: (a: V, b: V) => V; cacheSize: number }): TopicIndex<K, V> {
  const { prefer } = options;
  const cache = createMatchCache<readonly Subscriber<K, V>[]>(options.cacheSize);
  const nobody: readonly Subscriber<K, V>[] = Object.freeze([]);
  const exact = new Map<string, Slot<K, V>>();
  const root: Node<K, V> = createNode("");
  let size = 0;

  /** Puts the subscriber into the slot; the slot to keep. */
  function addTo(slot: Slot<K, V> | undefined, subscriber: Subscriber<K, V>): Slot<K, V> {
    if (slot instanceof Map) {
      if (!slot.has(subscriber.key)) size++;
      return slot.set(subscriber.key, subscriber);
    }
    if (slot === undefined || slot.key === subscriber.key) {
      if (slot === undefined) size++;
      return subscriber;
    }
    size++;
    return new Map([
      [slot.key, slot],
      [subscriber.key, subscriber],
    ]);
  }

  /** Takes the key out of the slot; the slot to keep, undefined = it is empty. */
  function removeFrom(slot: Slot<K, V> | undefined, key: K): Slot<K, V> | undefined {
    if (slot instanceof Map) {
      if (slot.delete(key)) size--;
      return slot.size > 0 ? slot : undefined;
    }
    if (slot === undefined || slot.key !== key) return slot;
    size--;
    return undefined;
  }

  function set(filter: string, key: K, value: V): void {
    const subscriber = { key, value };
    if (!hasWildcard(filter)) {
      exact.set(filter, addTo(exact.get(filter), subscriber));
      cache.delete(filter);
      return;
    }
    const endsInHash = filter.endsWith("#");
    let node = root;
    for (const level of filter.split("/")) {
      if (level === "#") break;
      node = level === "+" ? (node.plus ??= createNode(level)) : getOrCreateChild(node, level);
    }
    if (endsInHash) node.rest = addTo(node.rest, subscriber);
    else node.here = addTo(node.here, subscriber);
    cache.deleteMatching(filter);
  }

  function remove(filter: string, key: K): boolean {
    const before = size;
    if (!hasWildcard(filter)) {
      const slot = removeFrom(exact.get(filter), key);
      if (slot === undefined) exact.delete(filter);
      else exact.set(filter, slot);
      cache.delete(filter);
      return size < before;
    }
    const path = [root];
    let node = root;
    for (const level of filter.split("/")) {
      if (level === "#") break;
      const next: Node<K, V> | undefined = level === "+" ? node.plus : getChild(node, level);
      if (next === undefined) return false;
      path.push(next);
      node = next;
    }
    if (filter.endsWith("#")) node.rest = removeFrom(node.rest, key);
    else node.here = removeFrom(node.here, key);
    if (size === before) return false;
    cache.deleteMatching(filter);
    // Levels that lead nowhere any more go, from the end.
    for (let depth = path.length - 1; depth > 0; depth--) {
      const child = path[depth];
      const parent = path[depth - 1];
      if (child === undefined || parent === undefined || !isEmpty(child)) break;
      if (child.level === "+") parent.plus = undefined;
      else deleteChild(parent, child.level);
    }
    return true;
  }

  function match(topic: string): readonly Subscriber<K, V>[] {
    if (size === 0) return nobody;
    const known = cache.get(topic);
    if (known !== undefined) return known;
    const slots: Slot<K, V>[] = [];
    const plain = exact.get(topic);
    if (plain !== undefined) slots.push(plain);
    if (!isEmpty(root)) {
      // No filter has more levels than this; the levels beyond can only be met by a `#` before them.
      const levels = topic.split("/", maxFilterLevels + 1);
      if (topic.charCodeAt(0) !== dollar) {
        collect(root, levels, 0, slots);
      } else {
        // A wildcard in the first level doesn't match a topic name that begins with $ [MQTT-4.7.2-1].
        const system = getChild(root, levels[0] ?? "");
        if (system !== undefined) collect(system, levels, 1, slots);
      }
    }
    const result = slots.length === 0 ? nobody : merge(slots, prefer);
    cache.set(topic, result);
    return result;
  }

  return {
    set,
    delete: remove,
    match,
    get size() {
      return size;
    },
  };
}

function createNode<K, V>(level: string): Node<K, V> {
  return { level, children: undefined, plus: undefined, here: undefined, rest: undefined };
}

function isEmpty<K, V>(node: Node<K, V>): boolean {
  return node.children === undefined && node.plus === undefined && node.here === undefined && node.rest === undefined;
}

function getChild<K, V>(node: Node<K, V>, level: string): Node<K, V> | undefined {
  const { children } = node;
  if (children instanceof Map) return children.get(level);
  return children?.level === level ? children : undefined;
}

function getOrCreateChild<K, V>(node: Node<K, V>, level: string): Node<K, V> {
  const known = getChild(node, level);
  if (known !== undefined) return known;
  const child = createNode<K, V>(level);
  const { children } = node;
  if (children instanceof Map) children.set(level, child);
  else if (children === undefined) node.children = child;
  else {
    node.children = new Map([
      [children.level, children],
      [level, child],
    ]);
  }
  return child;
}

function deleteChild<K, V>(node: Node<K, V>, level: string): void {
  const { children } = node;
  if (children instanceof Map) {
    children.delete(level);
    if (children.size === 0) node.children = undefined;
  } else {
    node.children = undefined;
  }
}

function hasWildcard(filter: string): boolean {
  return filter.includes("+") || filter.endsWith("#");
}

/** Adds the slots that match `levels` from `depth` on. As deep as the deepest filter, so at most {@link maxFilterLevels}. */
function collect<K, V>(node: Node<K, V>, levels: readonly string[], depth: number, slots: Slot<K, V>[]): void {
  // Also where the topic name ends here: `sport/#` matches `sport` (MQTT 4.7.1.2).
  if (node.rest !== undefined) slots.push(node.rest);
  const level = levels[depth];
  if (level === undefined) {
    if (node.here !== undefined) slots.push(node.here);
    return;
  }
  if (node.children !== undefined) {
    const child = getChild(node, level);
    if (child !== undefined) collect(child, levels, depth + 1, slots);
  }
  if (node.plus !== undefined) collect(node.plus, levels, depth + 1, slots);
}

/** Up to this many slots of one subscriber each, comparing with all before is quicker than a Map. */
const fewSlots = 8;

/** The subscribers of all slots, each once. */
function merge<K, V>(slots: readonly Slot<K, V>[], prefer: (a: V, b: V) => V): Subscriber<K, V>[] {
  const [only] = slots;
  if (slots.length === 1 && only !== undefined) return only instanceof Map ? [...only.values()] : [only];
  const result: Subscriber<K, V>[] = [];
  const few = slots.length <= fewSlots && !slots.some((slot) => slot instanceof Map);
  const places = few ? undefined : new Map<K, number>();

  function add(subscriber: Subscriber<K, V>): void {
    const at = places ? places.get(subscriber.key) : result.findIndex((known) => known.key === subscriber.key);
    const known = at === undefined ? undefined : result[at];
    if (at === undefined || known === undefined) {
      places?.set(subscriber.key, result.length);
      result.push(subscriber);
      return;
    }
    const value = prefer(known.value, subscriber.value);
    if (value === subscriber.value) result[at] = subscriber;
    else if (value !== known.value) result[at] = { key: subscriber.key, value };
  }

  for (const slot of slots) {
    if (slot instanceof Map) for (const subscriber of slot.values()) add(subscriber);
    else add(slot);
  }
  return result;
}
