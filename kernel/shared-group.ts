/**
 * A shared subscription of a cluster, on the node that owns it: it reads the log as a session does, with a cursor of its
 * own, and gives each message to a node that has connected members. What a node or a member does not settle goes to another.
 */
import type { ClusterControl, ClusterMessage, ClusterSelector, LogPosition } from "./cluster-engine.ts";
import type { Claim } from "./cluster-session.ts";
import { tellMessage } from "./cluster-words.ts";
import { LogReader, type LogReaderOwner, placeOf } from "./log-reader.ts";
import { encodeCursor, type KeptCursor } from "./session-records.ts";

/** What the nodes tell each other of a shared subscription. */
export type SharedWord = { readonly proxy: string; readonly topicFilter: string } & (
  | { readonly op: "member"; readonly clientId: string; readonly state: MemberState; readonly lasts: boolean }
  | {
      readonly op: "give";
      readonly message: ReturnType<typeof tellMessage>;
      readonly position: LogPosition | undefined;
    }
  | { readonly op: "ended"; readonly clientId: string }
  | { readonly op: "done" | "returned"; readonly position: LogPosition }
);

export type MemberState = "here" | "away" | "gone";

export interface SharedGroup {
  readonly topicFilter: string;
  readonly claim: Claim;
  /** Has nobody, connected or absent. */
  readonly isEmpty: boolean;
  readonly hasConnected: boolean;
  /** Another node may own it by now: nothing is given. */
  isInDoubt: boolean;
  /** @param lasts it is to be remembered while it is away */
  member(clientId: string, node: string, state: MemberState, lasts: boolean): void;
  /** Its session has ended. False: it is connected, as far as is known here. */
  ended(clientId: string): boolean;
  /** From the tail; without a position it is of QoS 0. */
  offer(message: ClusterMessage, position: LogPosition | undefined, before: number | undefined): void;
  done(position: LogPosition): void;
  returned(position: LogPosition): void;
  nodeDown(node: string): void;
  checkpoint(): void;
  resume(): void;
  close(): void;
}

export interface SharedGroupDeps extends Pick<LogReaderOwner, "log" | "tail" | "logger" | "gap"> {
  readonly proxy: string;
  readonly node: string;
  readonly control: ClusterControl;
  isLive(): boolean;
  /** To a connected member here. False: nobody has room. */
  giveHere(topicFilter: string, message: ClusterMessage, position: LogPosition | undefined): boolean;
}

interface Item {
  readonly message: ClusterMessage;
  readonly position: LogPosition;
}

/** Messages that may be under way to each connected member. */
const windowOfMember = 100;

/** How long another node has to say whether it takes a message. */
const giveMs = 2000;

/** How long a node is left alone that had no room, unless it settles something before. */
const fullMs = 200;

export function createSharedGroup(
  start: {
    readonly topicFilter: string;
    /** Without `$share` and the group. */
    readonly selector: ClusterSelector;
    readonly claim: Claim;
    readonly cursor: Pick<KeptCursor, "upTo" | "settled">;
    /** Absent ones, until they say otherwise. */
    readonly members: readonly string[];
  },
  deps: SharedGroupDeps,
): SharedGroup {
  const { topicFilter, claim } = start;
  /** By client: the node it is connected to; undefined = it is absent. */
  const members = new Map<string, string | undefined>(start.members.map((clientId) => [clientId, undefined]));
  const lasting = new Set(start.members);
  const perNode = new Map<string, { members: number; under: number; fullUntil: number }>();
  const out = new Map<number, Item & { readonly node: string }>();
  let waiting: Item[] = [];
  let connected = 0;
  let isDirty = true;
  let closed = false;
  let retry: NodeJS.Timeout | undefined;

  const reader = new LogReader(
    {
      ...deps,
      selectors: () => [start.selector],
      room: () => (deps.isLive() && !group.isInDoubt ? connected * windowOfMember - out.size - waiting.length : 0),
      take(message, position) {
        waiting.push({ message, position });
        pump();
        return true;
      },
      caughtUp: () => undefined,
    },
    start.cursor,
  );

  function nodeOf(id: string): { members: number; under: number; fullUntil: number } {
    let known = perNode.get(id);
    if (!known) perNode.set(id, (known = { members: 0, under: 0, fullUntil: 0 }));
    return known;
  }

  /** The node whose members have the least under way. */
  function pick(): string | undefined {
    const now = performance.now();
    let best: string | undefined;
    let least = Infinity;
    for (const [id, { members: count, under, fullUntil }] of perNode) {
      if (count === 0 || fullUntil > now) continue;
      const load = under / count;
      if (load < least) [best, least] = [id, load];
    }
    return best;
  }

  function pump(): void {
    while (waiting.length > 0 && !closed) {
      const node = pick();
      if (node === undefined) {
        if (connected > 0) retry ??= setTimeout(again, fullMs);
        return;
      }
      const item = waiting.shift() as Item;
      if (item.message.expiresAt === 0 || item.message.expiresAt > Date.now()) give(node, item);
      else reader.settle(item.position);
    }
  }

  function again(): void {
    retry = undefined;
    pump();
    reader.resume();
  }

  function give(node: string, item: Item): void {
    const place = placeOf(item.position);
    const at = nodeOf(node);
    out.set(place, { ...item, node });
    at.under++;
    if (node !== deps.node) {
      void giveAway(node, item);
      return;
    }
    if (deps.giveHere(topicFilter, item.message, item.position)) return;
    at.fullUntil = performance.now() + fullMs;
    takeBack(item.position, node);
  }

  async function giveAway(node: string, { message, position }: Item): Promise<void> {
    if (await tell(node, message, position)) return;
    nodeOf(node).fullUntil = performance.now() + fullMs;
    takeBack(position, node);
    pump();
  }

  async function tell(node: string, message: ClusterMessage, position: LogPosition | undefined): Promise<boolean> {
    const word: SharedWord = { proxy: deps.proxy, topicFilter, op: "give", message: tellMessage(message), position };
    try {
      const answer = await deps.control.request(node, "shared", Buffer.from(JSON.stringify(word)), giveMs);
      return answer.length > 0;
    } catch {
      return false;
    }
  }

  /** @param node undefined = whoever has it */
  function takeBack(position: LogPosition, node: string | undefined): void {
    const place = placeOf(position);
    const item = out.get(place);
    if (!item || (node !== undefined && item.node !== node)) return;
    out.delete(place);
    nodeOf(item.node).under--;
    const at = waiting.findIndex((each) => each.position.seq > position.seq);
    waiting.splice(at < 0 ? waiting.length : at, 0, item);
  }

  function cursor(): KeptCursor {
    return { ...reader.cursor(), inflight: [], retained: [] };
  }

  const group: SharedGroup = {
    topicFilter,
    claim,
    isInDoubt: false,
    get isEmpty() {
      return members.size === 0;
    },
    get hasConnected() {
      return connected > 0;
    },
    member(clientId, node, state, lasts) {
      const before = members.get(clientId);
      // It has moved on, and the node that it came from says so late.
      if (state !== "here" && before !== undefined && before !== node) return;
      if (before !== undefined) {
        nodeOf(before).members--;
        connected--;
      }
      if (state === "here") {
        members.set(clientId, node);
        const at = nodeOf(node);
        at.members++;
        at.fullUntil = 0;
        connected++;
      } else if (state === "away" && lasts) {
        members.set(clientId, undefined);
      } else {
        members.delete(clientId);
      }
      const isKept = members.has(clientId) && lasts;
      if (isKept !== lasting.has(clientId)) {
        if (isKept) lasting.add(clientId);
        else lasting.delete(clientId);
        claim.writer.put("mem", Buffer.from(JSON.stringify([...lasting])));
      }
      pump();
      reader.resume();
    },
    ended(clientId) {
      if (members.get(clientId) !== undefined) return false;
      members.delete(clientId);
      if (lasting.delete(clientId)) claim.writer.put("mem", Buffer.from(JSON.stringify([...lasting])));
      return true;
    },
    offer(message, position, before) {
      if (position) {
        reader.offer(message, position, before);
        return;
      }
      if (group.isInDoubt) return;
      const node = pick();
      if (node === deps.node) deps.giveHere(topicFilter, message, undefined);
      else if (node !== undefined) void tell(node, message, undefined);
    },
    done(position) {
      const item = out.get(placeOf(position));
      if (!item) return;
      out.delete(placeOf(position));
      const at = nodeOf(item.node);
      at.under--;
      at.fullUntil = 0;
      reader.settle(position);
      isDirty = true;
      pump();
      reader.resume();
    },
    returned(position) {
      takeBack(position, undefined);
      pump();
    },
    nodeDown(node) {
      for (const { position, node: at } of out.values()) if (at === node) takeBack(position, node);
      for (const [clientId, at] of members) {
        if (at !== node) continue;
        connected--;
        if (lasting.has(clientId)) members.set(clientId, undefined);
        else members.delete(clientId);
      }
      perNode.delete(node);
      pump();
    },
    checkpoint() {
      if (!isDirty) return;
      isDirty = false;
      claim.writer.put("cur", encodeCursor(cursor()));
    },
    resume: () => reader.resume(),
    close() {
      closed = true;
      clearTimeout(retry);
      reader.close();
      waiting = [];
    },
  };
  return group;
}
