/** The last message with RETAIN set of each topic, for those who subscribe later: a trie by topic level, bounded. */
import type { Expiries } from "./expiries.ts";
import type { KeptMessage } from "./session.ts";
import { maxFilterLevels } from "./topics.ts";

export interface Retained {
  readonly count: number;
  readonly bytes: number;
  /**
   * Keeps the message in place of its topic's; an empty payload clears the topic [MQTT-3.3.1-6].
   * @returns false: there was no room, and the topic keeps what it had
   */
  set(message: KeptMessage): boolean;
  /** One that an earlier process has left: kept whatever the bounds of now are, and its owner is not told. */
  restore(message: KeptMessage): void;
  /** What a valid topic filter matches, in no order. Those that have expired are not among them. */
  match(topicFilter: string): KeptMessage[];
}

interface Node {
  readonly parent: Node | undefined;
  readonly level: string;
  children: Map<string, Node> | undefined;
  message: KeptMessage | undefined;
  /** What `expiries` was given for the message. */
  expire: (() => void) | undefined;
}

export interface RetainedOwner {
  /** Of now. */
  readonly limits: { readonly maxMessages: number; readonly maxBytes: number };
  readonly expiries: Expiries;
  now(): number;
  /** The message is the topic's now. */
  kept(message: KeptMessage): void;
  /** It is no more: replaced by one that was `kept`, or cleared or expired. */
  dropped(message: KeptMessage, isReplaced: boolean): void;
}

export function createRetained(owner: RetainedOwner): Retained {
  const root = createNode(undefined, "");
  let count = 0;
  let bytes = 0;

  function unschedule({ message, expire }: Node): void {
    if (message && expire) owner.expiries.delete(message.expiresAt, expire);
  }

  function clear(node: Node): void {
    const { message } = node;
    if (!message) return;
    unschedule(node);
    node.message = undefined;
    count--;
    bytes -= message.bytes;
    owner.dropped(message, false);
    // Levels that lead nowhere any more go, from the end.
    let empty = node;
    while (empty.parent && !empty.message && !empty.children) {
      const { parent, level } = empty;
      parent.children?.delete(level);
      if (parent.children?.size === 0) parent.children = undefined;
      empty = parent;
    }
  }

  function find(topic: string): Node | undefined {
    let node: Node | undefined = root;
    for (const level of levelsOf(topic)) node = node?.children?.get(level);
    return node;
  }

  function findOrCreate(topic: string): Node {
    let node = root;
    for (const level of levelsOf(topic)) {
      const children = (node.children ??= new Map<string, Node>());
      let child = children.get(level);
      if (!child) children.set(level, (child = createNode(node, level)));
      node = child;
    }
    return node;
  }

  function set(message: KeptMessage): boolean {
    const old = find(message.topic);
    if (message.payload.length === 0) {
      if (old) clear(old);
      return true;
    }
    const { maxMessages, maxBytes } = owner.limits;
    const before = old?.message;
    const added = message.bytes - (before?.bytes ?? 0);
    if (count + (before ? 0 : 1) > maxMessages || bytes + added > maxBytes) return false;
    put(message);
    bytes += added;
    if (!before) count++;
    owner.kept(message);
    if (before) owner.dropped(before, true);
    return true;
  }

  function put(message: KeptMessage): void {
    const node = findOrCreate(message.topic);
    unschedule(node);
    node.message = message;
    node.expire = message.expiresAt === 0 ? undefined : () => clear(node);
    if (node.expire) owner.expiries.add(message.expiresAt, node.expire);
  }

  function match(topicFilter: string): KeptMessage[] {
    const found: KeptMessage[] = [];
    const now = owner.now();
    const levels = topicFilter.split("/");
    const take = ({ message }: Node): void => {
      if (message && (message.expiresAt === 0 || message.expiresAt > now)) found.push(message);
    };
    // One level of the filter after the other; what is at hand is what the levels before have led to.
    let at: Node[] = [root];
    for (const [depth, level] of levels.entries()) {
      // A wildcard in the first level doesn't match a topic name that begins with $ [MQTT-4.7.2-1].
      const open = (child: Node): boolean => depth > 0 || !child.level.startsWith("$");
      if (level === "#") {
        const below = depth > 0 ? at : [...(root.children?.values() ?? [])].filter(open);
        // Also the parent level: `sport/#` matches `sport` (MQTT 4.7.1.2).
        for (let node = below.pop(); node; node = below.pop()) {
          take(node);
          if (node.children) for (const child of node.children.values()) below.push(child);
        }
        return found;
      }
      const next: Node[] = [];
      for (const { children } of at) {
        if (level === "+") {
          for (const child of children?.values() ?? []) if (open(child)) next.push(child);
        } else {
          const child = children?.get(level);
          if (child) next.push(child);
        }
      }
      at = next;
    }
    for (const node of at) take(node);
    return found;
  }

  return {
    get count() {
      return count;
    },
    get bytes() {
      return bytes;
    },
    set,
    restore(message) {
      put(message);
      count++;
      bytes += message.bytes;
    },
    match,
  };
}

function createNode(parent: Node | undefined, level: string): Node {
  return { parent, level, children: undefined, message: undefined, expire: undefined };
}

/** No filter has more levels than this, so the levels beyond can only be met by a `#` before them: they stay one. */
function levelsOf(topic: string): string[] {
  const levels = topic.split("/", maxFilterLevels + 1);
  if (levels.length <= maxFilterLevels) return levels;
  const known = levels.slice(0, maxFilterLevels);
  return [...known, topic.slice(known.join("/").length + 1)];
}
