/** The only importer of kafkajs. 2.2.4 is pinned exactly: what is here answers to how that version behaves. */
import { createRequire } from "node:module";
import { connect as connectTcp, isIP } from "node:net";
import { connect as connectTls } from "node:tls";
import kafkajs from "kafkajs";
import {
  CompressionTypes,
  Kafka,
  logLevel,
  type ICustomPartitioner,
  type ISocketFactory,
  type Message,
  type SASLOptions,
} from "kafkajs";
import { compressionProblem, loadCodec, type Compression } from "./compression.ts";
import { brokersOf, type Access, type SaslOptions } from "./config.ts";
import { checkEncoder } from "./encoder-check.ts";
import { installEncoder, type Internals } from "./fast-produce.ts";
import { createTokenSource } from "./oauth.ts";
import type { Partition } from "./partitioner.ts";

/** @param debug takes kafkajs' own log */
export function createClient(config: Access, name: string, debug: (fields: object, message: string) => void): Kafka {
  stopIdleTimer();
  acceptLeaderless();
  return new Kafka({
    brokers: brokersOf(config),
    clientId: config.clientId ?? `sluice-${name.replaceAll(/[^a-zA-Z0-9._-]+/g, "-")}`,
    requestTimeout: config.requestTimeoutMs,
    connectionTimeout: config.connectionTimeoutMs,
    // The lanes retry, with a frozen batch and a pace of their own.
    retry: { retries: 0 },
    // For kafkajs any object means TLS; its types don't let it be undefined.
    ...(config.ssl === false ? {} : { ssl: config.ssl === true ? {} : config.ssl }),
    ...(config.sasl === undefined ? {} : { sasl: createLogin(config.sasl, config.requestTimeoutMs) }),
    socketFactory: openSocket,
    logLevel: logLevel.INFO,
    // kafkajs writes 30 lines a second in an outage; what an operator needs of them, the producer reports.
    logCreator: () => (entry) => debug({ kafkajs: entry.namespace }, entry.log.message),
  });
}

/** A new object each time, since kafkajs adds functions to it. */
function createLogin(sasl: SaslOptions, timeoutMs: number): SASLOptions {
  const { mechanism, username = "", password = "" } = sasl;
  if (mechanism !== "oauthbearer") return { mechanism, username, password };
  return { mechanism, oauthBearerProvider: createTokenSource(sasl, timeoutMs) };
}

/** kafkajs' own leaves Nagle's algorithm on, which holds a batch back until the last one was answered. */
const openSocket: ISocketFactory = ({ host, port, ssl, onConnect }) => {
  const name = isIP(host) ? {} : { servername: host };
  // oxlint-disable-next-line typescript/no-unnecessary-condition -- undefined without TLS, whatever the type says
  const socket = ssl ? connectTls({ host, port, ...name, ...ssl }, onConnect) : connectTcp({ host, port }, onConnect);
  socket.setNoDelay(true);
  socket.setKeepAlive(true, 30_000);
  return socket;
};

/** Kafka's number for a codec, which is made known to kafkajs where it has none. */
export function compressionType(compression: Compression): CompressionTypes {
  const types = { none: "None", gzip: "GZIP", snappy: "Snappy", lz4: "LZ4", zstd: "ZSTD" } as const;
  const type = CompressionTypes[types[compression]];
  const codec = loadCodec(compression);
  if (codec) Object.assign(kafkajs.CompressionCodecs, { [type]: () => codec });
  return type;
}

/** For what others have written: each codec that is there. kafkajs says by name which one a record wants that is not. */
export function acceptCodecs(): void {
  for (const each of ["snappy", "lz4", "zstd"] as const) {
    if (compressionProblem(each) === undefined) compressionType(each);
  }
}

/** The version whose insides fast-produce.ts and parcel.ts know. */
const knownVersion = "2.2.4";

/**
 * Puts the encoder of fast-produce.ts into kafkajs, if it proves to write the same bytes.
 * @returns why it may not be used; undefined = batches may go as parcels (see parcel.ts)
 */
export async function prepareEncoder(
  compression: CompressionTypes,
  { version, ...internals }: Internals & { readonly version: string } = loadInternals(),
): Promise<string | undefined> {
  if (version !== knownVersion) return `it is made for kafkajs ${knownVersion}, and this is ${version}`;
  try {
    installEncoder(internals);
    return await checkEncoder(internals.produce.protocol, compression);
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

/** The same objects each time: those that kafkajs itself uses. */
export function loadInternals(): Internals & { readonly version: string } {
  const load = createRequire(import.meta.url);
  const { version } = load("kafkajs/package.json") as { version: string };
  const produce = load("kafkajs/src/protocol/requests/produce/index.js") as Internals["produce"];
  const { lookupCodec } = load("kafkajs/src/protocol/message/compression/index.js") as Pick<Internals, "lookupCodec">;
  return { version, produce, lookupCodec };
}

/** @param place chooses the partition of a message of kafkajs', and notes the choice with it */
export function createPartitioner(
  place: (message: Pick<Message, "key" | "partition">, topic: string, partitions: readonly Partition[]) => number,
): ICustomPartitioner {
  return () =>
    ({ topic, message, partitionMetadata }) =>
      place(message, topic, partitionMetadata);
}

/**
 * After each answer, kafkajs 2.2.4 sets a timer of a negative time even with nothing to send, which does so again:
 * some 900 wake-ups a second for ever, and a TimeoutNegativeWarning (tulios/kafkajs#1751). Its queue asks for that
 * timer here only where requests wait or the broker throttles.
 */
export function stopIdleTimer(): void {
  const load = createRequire(import.meta.url);
  const queue: unknown = load("kafkajs/src/network/requestQueue/index.js");
  const prototype: unknown = typeof queue === "function" ? queue.prototype : undefined;
  if (!isRequestQueue(prototype) || prototype.scheduleCheckPendingRequests.name === "scheduleIfNeeded") return;
  const { scheduleCheckPendingRequests: schedule } = prototype;
  prototype.scheduleCheckPendingRequests = function scheduleIfNeeded() {
    if (this.pending.length > 0 || this.throttledUntil > Date.now()) schedule.call(this);
  };
}

interface RequestQueue {
  pending: readonly unknown[];
  /** Milliseconds since the epoch. */
  throttledUntil: number;
  scheduleCheckPendingRequests: (this: RequestQueue) => void;
}

function isRequestQueue(found: unknown): found is RequestQueue {
  return (
    typeof found === "object" &&
    found !== null &&
    "scheduleCheckPendingRequests" in found &&
    typeof found.scheduleCheckPendingRequests === "function"
  );
}

/** Kafka's codes of a partition that has no leader, or not all of its replicas. */
const partitionAway = new Set([5, 9, 72]);
const metadataVersions = [0, 1, 2, 3, 4, 5, 6];

/**
 * kafkajs 2.2.4 takes one partition without a leader for a failure of all metadata, so that no other partition, and no
 * other topic of the producer, can be written. Here the partition is left with the leader -1, and only what goes to it
 * fails, with KafkaJSBrokerNotFound.
 */
export function acceptLeaderless(): void {
  const load = createRequire(import.meta.url);
  for (const version of metadataVersions) {
    const response: unknown = load(`kafkajs/src/protocol/requests/metadata/v${version}/response.js`);
    if (!isMetadataResponse(response) || response.parse.name === "parseLeaderless") continue;
    const { parse } = response;
    response.parse = async function parseLeaderless(data) {
      for (const { partitionMetadata } of data.topicMetadata) {
        for (const partition of partitionMetadata) {
          if (partitionAway.has(partition.partitionErrorCode)) partition.partitionErrorCode = 0;
        }
      }
      return parse(data);
    };
  }
}

interface MetadataResponse {
  parse(
    this: void,
    data: { topicMetadata: { partitionMetadata: { partitionErrorCode: number }[] }[] },
  ): Promise<unknown>;
}

function isMetadataResponse(found: unknown): found is MetadataResponse {
  return typeof found === "object" && found !== null && "parse" in found && typeof found.parse === "function";
}
