/** Which nodes there are: each says so every two seconds, and one that has been silent for ten is down. */
import type { Clock, Logger } from "@sluice/kernel";
import type { ClusterNode, ClusterPeer, Unsubscribe } from "@sluice/kernel/cluster";
import type { Connection } from "./connection.ts";

export interface Members {
  peers(): ClusterPeer[];
  onPeer(changed: (peer: ClusterPeer) => void): Unsubscribe;
  /** A node of which nothing is left but what it left to do. */
  reportLost(node: ClusterNode): void;
  /** Another node goes by this one's name. */
  readonly hasTwin: boolean;
  start(): void;
  /** Tells the others that this node has left. */
  stop(): void;
}

const beatMs = 2000;
const silentMs = 8000;
/** A node that is down is forgotten after this. */
const forgetMs = 600_000;

interface Beat {
  readonly id: string;
  readonly incarnation: string;
  /** `hello`: answer at once, so that a node which has just come knows the others. */
  readonly says: "here" | "hello" | "bye";
}

interface Known extends ClusterPeer {
  /** Or when it was reported. */
  lastSeen: number;
  readonly wasHeard: boolean;
  isUp: boolean;
  hasLeft: boolean;
}

export function createMembers(
  node: ClusterNode,
  connection: Connection,
  { subject, clock, log }: { subject: string; clock: Clock; log: Logger },
): Members {
  const byIncarnation = new Map<string, Known>();
  const listeners = new Set<(peer: ClusterPeer) => void>();
  let timer: { clear(): void } | undefined;
  let twinSeenAt = -Infinity;

  function say(says: Beat["says"]): void {
    connection.publish(subject, Buffer.from(JSON.stringify({ ...node, says } satisfies Beat)));
  }

  function report(known: Known): void {
    for (const listener of listeners) listener(toPeer(known));
  }

  function heard({ id, incarnation, says }: Beat): void {
    if (incarnation === node.incarnation) return;
    if (id === node.id && says !== "bye") {
      if (twinSeenAt === -Infinity) {
        log.error(
          { nodeName: id },
          "Another node has this node's name: give each a nodeName of its own, or neither keeps its clients",
        );
      }
      twinSeenAt = clock.now();
    }
    if (says === "hello") say("here");
    const known = byIncarnation.get(incarnation);
    const isUp = says !== "bye";
    if (!known) {
      const made = { id, incarnation, isUp, hasLeft: !isUp, lastSeen: clock.now(), wasHeard: true };
      byIncarnation.set(incarnation, made);
      if (isUp) log.info({ node: id }, "A node has joined the cluster");
      report(made);
      return;
    }
    known.lastSeen = clock.now();
    if (known.isUp === isUp) return;
    known.isUp = isUp;
    known.hasLeft = !isUp;
    if (!isUp) log.info({ node: id }, "A node has left the cluster");
    report(known);
  }

  function beat(): void {
    say("here");
    const now = clock.now();
    for (const known of byIncarnation.values()) {
      if (known.isUp && now - known.lastSeen > silentMs) {
        known.isUp = false;
        log.warn({ node: known.id }, "A node has not been heard of: it is taken to be down");
        report(known);
      } else if (!known.isUp && now - known.lastSeen > forgetMs) byIncarnation.delete(known.incarnation);
    }
    timer = clock.setTimeout(beat, beatMs);
  }

  return {
    peers: () => [...byIncarnation.values()].map(toPeer),
    onPeer(listener) {
      listeners.add(listener);
      return () => void listeners.delete(listener);
    },
    reportLost({ id, incarnation }) {
      if (byIncarnation.has(incarnation)) return;
      const lost = { id, incarnation, isUp: false, hasLeft: false, lastSeen: clock.now(), wasHeard: false };
      byIncarnation.set(incarnation, lost);
      report(lost);
    },
    get hasTwin() {
      return clock.now() - twinSeenAt < silentMs;
    },
    start() {
      connection.subscribe(subject, (message) => heard(message.json<Beat>()));
      connection.onChange((isUp) => {
        timer?.clear();
        // Silence says nothing while this node hears nobody.
        if (!isUp) return;
        for (const known of byIncarnation.values()) if (known.isUp) known.lastSeen = clock.now();
        say("hello");
        timer = clock.setTimeout(beat, beatMs);
      });
    },
    stop() {
      timer?.clear();
      say("bye");
    },
  };
}

function toPeer({ id, incarnation, isUp, hasLeft, lastSeen, wasHeard }: Known): ClusterPeer {
  return { id, incarnation, isUp, hasLeft, seenAt: wasHeard ? lastSeen : undefined };
}
