/**
 * The streams that everything durable lies in: made by the first node that finds them missing, and checked by all others.
 * Any number of nodes may do so at once. The only importer of @nats-io/jetstream.
 */
import {
  DiscardPolicy,
  JetStreamApiError,
  jetstreamManager,
  RetentionPolicy,
  StorageType,
  type JetStreamManager,
  type StreamConfig,
} from "@nats-io/jetstream";
import type { Connection } from "./connection.ts";
import type { Layout } from "./layout.ts";

export interface StreamOptions {
  readonly namespace: string;
  readonly replicas: number;
  readonly retentionMs: number;
  readonly maxBytes: number;
  readonly timeoutMs: number;
  /** The servers can take several writes of a session as one. */
  readonly takesBatches: boolean;
}

/**
 * How long a message's id is remembered, in the streams of messages and of everything else: long enough for a publisher
 * whose gateway was killed to come back, and send again what that one had stored and not acknowledged.
 */
export const dedupeMs = { log: 120_000, records: 60_000 };

/** Of a stream's metadata; in other quotes than metrics have, whose names are looked for in the sources. */
const shardsKey = `sluice_shards`;

/** What no other try can mend: what stands in NATS is not what the config says. */
export class StreamMismatch extends Error {}

type Wanted = Partial<StreamConfig> & Pick<StreamConfig, "name">;

const nanosInMs = 1_000_000;
const notFound = 10_059;
const nameInUse = 10_058;

/** @throws StreamMismatch; any other error is worth another try */
export async function ensureStreams(connection: Connection, layout: Layout, options: StreamOptions): Promise<void> {
  if (!connection.raw) throw new Error("there is no connection to NATS");
  const manager = await jetstreamManager(connection.raw, { checkAPI: false, timeout: options.timeoutMs });
  for (const stream of wantedStreams(layout, options)) await ensure(manager, stream, options);
}

async function ensure(manager: JetStreamManager, wanted: Wanted, options: StreamOptions): Promise<void> {
  const found = await find(manager, wanted.name);
  if (found) {
    await check(manager, found, wanted, options);
    return;
  }
  try {
    await manager.streams.add(wanted);
  } catch (error) {
    // Another node was quicker, with other options than these.
    if (!(error instanceof JetStreamApiError) || error.code !== nameInUse) throw error;
    const made = await find(manager, wanted.name);
    if (made) await check(manager, made, wanted, options);
  }
}

async function find(manager: JetStreamManager, name: string): Promise<StreamConfig | undefined> {
  try {
    return (await manager.streams.info(name)).config;
  } catch (error) {
    if (error instanceof JetStreamApiError && error.code === notFound) return undefined;
    throw error;
  }
}

/** What a running cluster may change (how long, how much, how often) is changed; the number of shards can't be. */
async function check(
  manager: JetStreamManager,
  found: StreamConfig,
  wanted: Wanted,
  { namespace }: StreamOptions,
): Promise<void> {
  const has = found.metadata?.[shardsKey];
  const wants = wanted.metadata?.[shardsKey];
  if (has !== wants) {
    throw new StreamMismatch(
      has === undefined
        ? `NATS has a stream ${wanted.name} that no gateway made: give this cluster another namespace than ${namespace}`
        : `the cluster has ${has} shards, and this node's config says ${wants}: write shards: ${has}`,
    );
  }
  const differs =
    found.num_replicas !== wanted.num_replicas ||
    found.duplicate_window !== wanted.duplicate_window ||
    found.max_age !== (wanted.max_age ?? 0) ||
    found.max_bytes !== (wanted.max_bytes ?? -1) ||
    (wanted.allow_atomic === true && found.allow_atomic !== true);
  if (differs) await manager.streams.update(wanted.name, { ...found, ...wanted });
}

function wantedStreams(layout: Layout, options: StreamOptions): Wanted[] {
  const { namespace, replicas, retentionMs, maxBytes, takesBatches } = options;
  const common = {
    storage: StorageType.File,
    retention: RetentionPolicy.Limits,
    discard: DiscardPolicy.Old,
    num_replicas: replicas,
    allow_direct: true,
    allow_msg_ttl: true,
    metadata: { [shardsKey]: String(layout.shards) },
  };
  const latest = { ...common, max_msgs_per_subject: 1, duplicate_window: dedupeMs.records * nanosInMs };
  const streams: Wanted[] = [];
  for (let shard = 0; shard < layout.shards; shard++) {
    streams.push({
      ...common,
      name: layout.streams.log(shard),
      description: "Messages of QoS 1 and 2 of gateways",
      subjects: [`${namespace}.m.${shard}.>`],
      max_age: retentionMs * nanosInMs,
      max_bytes: maxBytes,
      duplicate_window: Math.min(dedupeMs.log, retentionMs) * nanosInMs,
      republish: { src: `${namespace}.m.${shard}.>`, dest: `${namespace}.v.${shard}.>` },
    });
    streams.push({
      ...latest,
      name: layout.streams.sessions(shard),
      description: "Sessions of gateways' clients",
      ...(takesBatches ? { allow_atomic: true } : {}),
      subjects: [`${namespace}.s.${shard}.>`],
    });
    streams.push({
      ...latest,
      name: layout.streams.retained(shard),
      description: "Retained messages of gateways",
      subjects: [`${namespace}.r.${shard}.>`],
    });
  }
  streams.push({
    ...latest,
    name: layout.streams.wills,
    description: "What gateways publish for a node that dies",
    subjects: [`${namespace}.w.>`],
  });
  return streams;
}
