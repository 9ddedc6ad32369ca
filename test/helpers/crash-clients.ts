/** Clients that keep what MQTT has a client keep, so that they go on after their gateway was killed: raw, with nothing hidden. */
import type { IPublishPacket, Packet } from "mqtt-packet";
import { connectRaw, type RawClient } from "./raw-client.ts";

/** Sends numbered messages of one QoS, a window at a time, and sends again what was not acknowledged. */
export interface CrashPublisher {
  readonly clientId: string;
  /** Payloads that the gateway has taken on: PUBACK, or at QoS 2 PUBREC. */
  readonly acked: ReadonlySet<string>;
  connect(port: number): Promise<void>;
  /** It has no connection: none yet, or it was ended. */
  isClosed(): boolean;
  /** No new messages from here on; resolves when all are acknowledged. */
  finish(): Promise<void>;
  destroy(): void;
}

interface Pending {
  readonly payload: string;
  /** QoS 2: PUBREC has come, so that PUBREL is what is sent. */
  released: boolean;
}

/** @param pauseMs after each acknowledgement, before a new message takes its place */
export function createCrashPublisher(clientId: string, qos: 1 | 2, window = 50, pauseMs = 0): CrashPublisher {
  const acked = new Set<string>();
  const pending = new Map<number, Pending>();
  let client: RawClient | undefined;
  let count = 0;
  let lastId = 0;
  let stopping = false;
  const finished = Promise.withResolvers<void>();

  function send(messageId: number, { payload, released }: Pending, dup: boolean): void {
    if (released) client?.send({ cmd: "pubrel", messageId });
    else client?.send({ cmd: "publish", topic: `load/${clientId}`, payload, qos, messageId, dup, retain: false });
  }

  function fill(): void {
    while (!stopping && pending.size < window) {
      do lastId = lastId === 65_535 ? 1 : lastId + 1;
      while (pending.has(lastId));
      const next = { payload: `${clientId} ${++count}`, released: false };
      pending.set(lastId, next);
      send(lastId, next, false);
    }
    if (stopping && pending.size === 0) finished.resolve();
  }

  function received(packet: Packet): void {
    const id = "messageId" in packet ? (packet.messageId ?? 0) : 0;
    const message = pending.get(id);
    if (!message) return;
    if (packet.cmd === "pubrec") {
      acked.add(message.payload);
      message.released = true;
      send(id, message, false);
      return;
    }
    if (packet.cmd !== "puback" && packet.cmd !== "pubcomp") return;
    acked.add(message.payload);
    pending.delete(id);
    if (pauseMs === 0 || stopping) fill();
    else setTimeout(fill, pauseMs);
  }

  return {
    clientId,
    acked,
    isClosed: () => client?.isClosed ?? true,
    async connect(port) {
      client = await connectRaw(port, clientId, { clean: false });
      client.onPacket = received;
      for (const [id, message] of pending) send(id, message, true);
      fill();
    },
    finish() {
      stopping = true;
      fill();
      return finished.promise;
    },
    destroy: () => client?.destroy(),
  };
}

/** A persistent session that acknowledges what it gets, and counts what comes twice. */
export interface CrashSubscriber {
  readonly clientId: string;
  /** Payloads in the order of their first arrival. */
  readonly got: ReadonlySet<string>;
  /** QoS 2 messages that were handed on a second time: MQTT allows none. */
  readonly doubles: readonly string[];
  connect(port: number): Promise<void>;
  /** It has no connection: none yet, or it was ended. */
  isClosed(): boolean;
  destroy(): void;
}

export function createCrashSubscriber(clientId: string, qos: 1 | 2, topicFilter = "load/#"): CrashSubscriber {
  const got = new Set<string>();
  const doubles: string[] = [];
  /** Between PUBLISH and PUBREL. */
  const open = new Set<number>();
  let client: RawClient | undefined;
  let subscribed = false;

  function publish({ qos: at, messageId = 0, payload }: IPublishPacket): void {
    const text = payload.toString();
    if (at === 2 && !open.has(messageId)) {
      open.add(messageId);
      if (got.has(text)) doubles.push(text);
    }
    got.add(text);
    if (at > 0) client?.send({ cmd: at === 2 ? "pubrec" : "puback", messageId });
  }

  return {
    clientId,
    got,
    doubles,
    isClosed: () => client?.isClosed ?? true,
    async connect(port) {
      client = await connectRaw(port, clientId, { clean: false });
      if (!subscribed) await client.subscribe(topicFilter, qos);
      subscribed = true;
      const early = [...client.received];
      client.onPacket = (packet) => {
        if (packet.cmd === "publish") publish(packet);
        if (packet.cmd !== "pubrel") return;
        open.delete(packet.messageId ?? 0);
        client?.send({ cmd: "pubcomp", messageId: packet.messageId ?? 0 });
      };
      for (const packet of early) client.onPacket(packet);
    },
    destroy: () => client?.destroy(),
  };
}
