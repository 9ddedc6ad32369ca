/** The only importer of kafkajs. 2.2.4 is pinned exactly: what is here answers to how that version behaves. */
import { createRequire } from "node:module";
import { connect as connectTcp, isIP } from "node:net";
import { connect as connectTls } from "node:tls";
import type { Host } from "@sluice/kernel";
import { Kafka, logLevel, Partitioners, type ICustomPartitioner, type ISocketFactory } from "kafkajs";
import { brokersOf, type Config } from "./config.ts";

export function createClient(config: Config, host: Host): Kafka {
  stopIdleTimer();
  return new Kafka({
    brokers: brokersOf(config),
    clientId: config.clientId ?? `sluice-${host.name.replaceAll(/[^a-zA-Z0-9._-]+/g, "-")}`,
    requestTimeout: config.requestTimeoutMs,
    connectionTimeout: config.connectionTimeoutMs,
    // The lanes retry, with a frozen batch and a pace of their own.
    retry: { retries: 0 },
    // For kafkajs any object means TLS; its types don't let it be undefined.
    ...(config.ssl === false ? {} : { ssl: config.ssl === true ? {} : config.ssl }),
    // A copy, since kafkajs adds functions to it.
    ...(config.sasl === undefined ? {} : { sasl: { ...config.sasl } }),
    socketFactory: openSocket,
    logLevel: logLevel.INFO,
    // kafkajs writes 30 lines a second in an outage; what an operator needs of them, the producer reports.
    logCreator: () => (entry) => host.log.debug({ kafkajs: entry.namespace }, entry.log.message),
  });
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

/**
 * Kafka's default choice, made once per record: a batch sent again must go where it went, or an idempotent producer's
 * sequence numbers would name other records than before, and the broker drop them as known. A partition that is no
 * longer there is chosen anew, because kafkajs resolves without having sent a record of an unknown partition.
 */
export const createStickyPartitioner: ICustomPartitioner = () => {
  const choose = Partitioners.DefaultPartitioner();
  return (args) => {
    const { message, partitionMetadata } = args;
    if (message.partition !== undefined) {
      if (partitionMetadata.some(({ partitionId }) => partitionId === message.partition)) return message.partition;
      delete message.partition;
    }
    const partition = choose(args);
    message.partition = partition;
    return partition;
  };
};

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
