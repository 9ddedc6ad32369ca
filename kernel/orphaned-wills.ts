/**
 * Wills in a cluster: each is kept with the engine while its client is connected. Where a node dies, one of the others
 * publishes the wills that it has left, save those of clients that are connected again.
 */
import type { ClusterEngine, ClusterPeer, ClusterProxy } from "./cluster-engine.ts";
import { messageOf } from "./errors.ts";
import type { Logger } from "./plugin.ts";
import type { WillOfClient } from "./store.ts";

export interface OrphanedWills {
  /** Its client is connected. Nothing is waited for. */
  keep(clientId: string, will: WillOfClient): void;
  /** Its client has gone, or is another connection: whoever closed it has seen to the will. */
  forget(clientId: string): void;
  peer(peer: ClusterPeer): void;
  /** What could not be written is tried again. */
  retry(): void;
}

export interface OrphanedWillsDeps {
  readonly engine: ClusterEngine;
  readonly cluster: ClusterProxy;
  readonly logger: Logger;
  /** Which of these clients are connected to any node that is up, this one included. */
  connected(clientIds: readonly string[]): Promise<ReadonlySet<string>>;
  /** Resolves when it has been published, or waits for its delay. */
  publish(will: WillOfClient): Promise<void>;
}

/** Clients whose wills are to be written or deleted, and could not be yet. */
const maxUnwritten = 100_000;

export function createOrphanedWills(deps: OrphanedWillsDeps): OrphanedWills {
  const { engine, cluster, logger } = deps;
  const kept = new Set<string>();
  /** By client; undefined = to be deleted. */
  const unwritten = new Map<string, WillOfClient | undefined>();
  let isWriting = false;

  async function write(): Promise<void> {
    if (isWriting) return;
    isWriting = true;
    try {
      for (const [clientId, will] of unwritten) {
        if (will) await cluster.wills.put(clientId, encode(will));
        else await cluster.wills.delete(clientId);
        if (unwritten.get(clientId) === will) unwritten.delete(clientId);
      }
    } catch {
      // When the engine is back, or with the next.
    } finally {
      isWriting = false;
    }
  }

  function put(clientId: string, will: WillOfClient | undefined): void {
    unwritten.delete(clientId);
    if (unwritten.size >= maxUnwritten) return;
    unwritten.set(clientId, will);
    void write();
  }

  /** One of those that are up sees to it: the first by name. */
  function isMine(): boolean {
    return engine.peers().every(({ id, isUp }) => !isUp || id > engine.node.id);
  }

  async function publishAll(incarnation: string): Promise<void> {
    for await (const found of cluster.wills.of(incarnation)) {
      const back = await deps.connected(found.map(({ clientId }) => clientId));
      for (const { clientId, value } of found) {
        if (!back.has(clientId)) await deps.publish(decode(value));
        await cluster.wills.drop(incarnation, clientId);
      }
    }
  }

  return {
    keep(clientId, will) {
      kept.add(clientId);
      put(clientId, will);
    },
    forget(clientId) {
      if (kept.delete(clientId)) put(clientId, undefined);
    },
    peer({ id, incarnation, isUp, hasLeft }) {
      if (isUp || hasLeft || !isMine()) return;
      publishAll(incarnation).catch((error: unknown) => {
        logger.error(
          { node: id, error: messageOf(error) },
          "The wills of a node that is gone could not all be published",
        );
      });
    },
    retry: () => void write(),
  };
}

function encode({ will: { payload, properties, ...will }, client }: WillOfClient): Buffer {
  const { correlationData, ...others } = properties ?? {};
  const told = {
    client,
    will: { ...will, properties: properties && others },
    payload: payload.toString("base64"),
    correlationData: correlationData?.toString("base64"),
  };
  return Buffer.from(JSON.stringify(told));
}

function decode(value: Buffer): WillOfClient {
  const { client, will, payload, correlationData } = JSON.parse(value.toString()) as WillOfClient & {
    payload: string;
    correlationData?: string;
  };
  const data = correlationData === undefined ? undefined : Buffer.from(correlationData, "base64");
  const properties = data ? { ...will.properties, correlationData: data } : will.properties;
  return { client, will: { ...will, payload: Buffer.from(payload, "base64"), properties } };
}
