/**
 * Wills in a cluster: each is kept with the engine while its client is connected, and while it waits for its delay. Where a
 * node dies, one of the others sees to the wills that it has left: it publishes those that are due, and takes over those
 * that still wait, save those of clients that are back.
 */
import type { ClusterEngine, ClusterPeer, ClusterProxy } from "./cluster-engine.ts";
import { messageOf } from "./errors.ts";
import type { Logger } from "./plugin.ts";
import type { SessionExpiry, WillOfClient } from "./store.ts";

export interface OrphanedWills {
  /** Its client is connected. Nothing is waited for. @param connection its number: greater for each later one of a client */
  keep(will: WillOfClient, connection: number, expirySec: SessionExpiry): void;
  /** The connection of its client has ended. @param expirySec of its session, with which a delay ends [MQTT-3.1.2-8] */
  wait(clientId: string, expirySec: SessionExpiry): void;
  /** It is published, or is not to be. */
  done(clientId: string, connection: number): void;
  /** Whatever connection it is of. */
  forget(clientId: string): void;
  /** Its client is connected, to whatever node. */
  back(clientId: string): void;
  /** A node has come or gone. */
  look(): void;
  /** What could not be done is tried again. */
  retry(): void;
  /** Resolves when nothing is left to be written, or it can't be. */
  flush(): Promise<void>;
}

export interface OrphanedWillsDeps {
  readonly engine: ClusterEngine;
  readonly cluster: ClusterProxy;
  readonly logger: Logger;
  now(): number;
  /** Which of these clients are connected to any node that is up, this one included. */
  connected(clientIds: readonly string[]): Promise<ReadonlySet<string>>;
  /** Resolves when it has been published, or is not to be. @param dueAt 0 = it is due */
  publish(will: WillOfClient, dueAt: number): Promise<void>;
}

interface Kept extends WillOfClient {
  /** Of which it is. */
  readonly connection: number;
  /** Seconds, the session's expiry counted in [MQTT-3.1.2-8]. */
  readonly delaySec: number;
  /** 0 = its client is connected. */
  readonly dueAt: number;
}

/** Clients whose wills are to be written or deleted, and could not be yet. */
const maxUnwritten = 100_000;

/** Wills of a dead node that are seen to at a time. */
const atOnce = 32;

export function createOrphanedWills(deps: OrphanedWillsDeps): OrphanedWills {
  const { engine, cluster, logger } = deps;
  const kept = new Map<string, Kept>();
  /** By client; undefined = to be deleted. */
  const unwritten = new Map<string, Kept | undefined>();
  /** Nodes that are down and need nothing more. */
  const seenTo = new Set<string>();
  /** Nodes that are being seen to, and clients that have come back meanwhile. */
  let underWay = 0;
  const arrived = new Set<string>();
  let writing: Promise<void> | undefined;

  async function write(): Promise<void> {
    try {
      while (unwritten.size > 0) await Promise.all([...unwritten].slice(0, atOnce).map(writeOne));
    } catch {
      // When the engine is back, or with the next.
    }
  }

  async function writeOne([clientId, will]: readonly [string, Kept | undefined]): Promise<void> {
    if (will) await cluster.wills.put(clientId, encode(will));
    else await cluster.wills.delete(clientId);
    if (unwritten.get(clientId) === will) unwritten.delete(clientId);
  }

  function flush(): Promise<void> {
    return (writing ??= write().finally(() => (writing = undefined)));
  }

  function put(clientId: string, will: Kept | undefined): void {
    unwritten.delete(clientId);
    if (unwritten.size >= maxUnwritten) return;
    unwritten.set(clientId, will);
    // One that waits from now on may not have to, which is known in a moment.
    queueMicrotask(() => void flush());
  }

  function keep(will: Kept): void {
    const { id } = will.client;
    kept.set(id, will);
    put(id, will);
  }

  function forget(clientId: string): void {
    if (kept.delete(clientId)) put(clientId, undefined);
  }

  function done(clientId: string, connection: number): void {
    if (kept.get(clientId)?.connection === connection) forget(clientId);
  }

  /** One of those that are up sees to it: the first by name. */
  function isMine(): boolean {
    return engine.health().live && engine.peers().every(({ id, isUp }) => !isUp || id > engine.node.id);
  }

  /** Also those whose end another node has heard of, which has died since. */
  function look(): void {
    const peers = engine.peers();
    const down = new Set(peers.flatMap(({ incarnation, isUp }) => (isUp ? [] : [incarnation])));
    for (const incarnation of seenTo) if (!down.has(incarnation)) seenTo.delete(incarnation);
    if (!isMine()) return;
    for (const peer of peers) if (!peer.isUp && !seenTo.has(peer.incarnation)) void seeTo(peer);
  }

  async function seeTo(peer: ClusterPeer): Promise<void> {
    seenTo.add(peer.incarnation);
    underWay++;
    try {
      for await (const found of cluster.wills.of(peer.incarnation)) {
        const wills = found.map(({ clientId, value }) => ({ clientId, will: decode(value) }));
        // A node that has left has told its clients; what it left is what waited, and what it could not delete.
        const wanted = wills.filter(({ will }) => !peer.hasLeft || will.dueAt > 0);
        const ids = wanted.map(({ clientId }) => clientId);
        const back = ids.length > 0 ? await deps.connected(ids) : arrived;
        for (let at = 0; at < wills.length; at += atOnce) {
          await Promise.all(
            wills.slice(at, at + atOnce).map(async (each) => {
              if (wanted.includes(each) && !back.has(each.clientId)) await adopt(each.clientId, each.will, peer);
              await cluster.wills.drop(peer.incarnation, each.clientId);
            }),
          );
        }
      }
    } catch (error) {
      seenTo.delete(peer.incarnation);
      logger.error(
        { node: peer.id, error: messageOf(error) },
        "The wills of a node that is gone could not all be seen to; it is tried again",
      );
    }
    if (--underWay === 0) arrived.clear();
  }

  async function adopt(clientId: string, will: Kept, { seenAt = deps.now() }: ClusterPeer): Promise<void> {
    if (arrived.has(clientId)) return;
    const own = kept.get(clientId);
    if (own && own.connection > will.connection) return;
    const dueAt = will.dueAt > 0 ? will.dueAt : seenAt + will.delaySec * 1000;
    if (own?.connection !== will.connection) {
      if (dueAt <= deps.now()) {
        await deps.publish(will, 0);
        return;
      }
      kept.set(clientId, { ...will, dueAt });
      void deps.publish(will, dueAt).finally(() => done(clientId, will.connection));
    }
    // From here on whoever sees to this node's wills finds it; only then it is dropped where it was.
    const adopted = kept.get(clientId);
    if (adopted?.connection === will.connection) await cluster.wills.put(clientId, encode(adopted));
  }

  return {
    keep({ will, client }, connection, expirySec) {
      keep({ will, client, connection, delaySec: Math.min(will.delaySec, expirySec), dueAt: 0 });
    },
    wait(clientId, expirySec) {
      const will = kept.get(clientId);
      const delaySec = Math.min(will?.will.delaySec ?? 0, expirySec);
      if (will && delaySec > 0) keep({ ...will, dueAt: deps.now() + delaySec * 1000 });
    },
    done,
    forget,
    back(clientId) {
      if (underWay > 0) arrived.add(clientId);
    },
    look,
    retry() {
      void flush();
      look();
    },
    flush,
  };
}

function encode({ will: { payload, properties, ...will }, client, connection, delaySec, dueAt }: Kept): Buffer {
  const { correlationData, ...others } = properties ?? {};
  const told = {
    connection,
    delaySec,
    dueAt,
    client,
    will: { ...will, properties: properties && others },
    payload: payload.toString("base64"),
    correlationData: correlationData?.toString("base64"),
  };
  return Buffer.from(JSON.stringify(told));
}

function decode(value: Buffer): Kept {
  const { payload, correlationData, ...told } = JSON.parse(value.toString()) as Kept & {
    payload: string;
    correlationData?: string;
  };
  const data = correlationData === undefined ? undefined : Buffer.from(correlationData, "base64");
  const properties = data ? { ...told.will.properties, correlationData: data } : told.will.properties;
  return { ...told, will: { ...told.will, payload: Buffer.from(payload, "base64"), properties } };
}
