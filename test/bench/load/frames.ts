/** The bytes that a load sends, made before it starts, and the least reading of what comes back. */
import mqttPacket from "mqtt-packet";

export const pingreq: Buffer = Buffer.from([0xc0, 0]);
export const disconnect: Buffer = Buffer.from([0xe0, 0]);

/** The upper four bits of a packet's first byte. */
export const types = { connack: 2, publish: 3, puback: 4, suback: 9, unsuback: 11, pingresp: 13 } as const;

export interface ConnectOptions {
  readonly clientId: string;
  readonly username?: string | undefined;
  readonly password?: string | undefined;
  /** Seconds; 0 = none. */
  readonly keepAlive?: number | undefined;
  readonly clean?: boolean | undefined;
}

export function connectFrame({ clientId, username, password, keepAlive = 0, clean = true }: ConnectOptions): Buffer {
  return mqttPacket.generate({
    cmd: "connect",
    protocolId: "MQTT",
    protocolVersion: 4,
    clientId,
    clean,
    keepalive: keepAlive,
    ...(username === undefined ? {} : { username, password: Buffer.from(password ?? "") }),
  });
}

export function subscribeFrame(topics: string | readonly string[], qos: 0 | 1): Buffer {
  const subscriptions = [topics].flat().map((topic) => ({ topic, qos }));
  return mqttPacket.generate({ cmd: "subscribe", messageId: 1, subscriptions });
}

export function unsubscribeFrame(topic: string): Buffer {
  return mqttPacket.generate({ cmd: "unsubscribe", messageId: 1, unsubscriptions: [topic] });
}

export function publishFrame(topic: string, payload: Buffer, qos: 0 | 1, packetId: number): Buffer {
  const publish = { cmd: "publish", topic, payload, qos, retain: false, dup: false } as const;
  return mqttPacket.generate(qos === 0 ? publish : { ...publish, messageId: packetId });
}

/** As many PUBACKs as there are ids. */
export function pubackFrames(ids: readonly number[]): Buffer {
  const acks = Buffer.allocUnsafe(ids.length * 4);
  for (let n = 0; n < ids.length; n++) acks.writeUInt32BE((0x4002_0000 | ids[n]!) >>> 0, n * 4);
  return acks;
}

/**
 * PUBLISH packets of one length behind each other, so that any run of them is one write of bytes that are there. Slot n
 * has the packet id n + 1.
 */
export interface Ring {
  readonly slots: number;
  readonly bytes: Buffer;
  readonly frameBytes: number;
  /** Where in a frame its payload begins. */
  readonly payloadAt: number;
}

/** Slot n publishes to `topics[n % topics.length]`; all topics have one length. Throws where they have not. */
export function createRing(topics: readonly string[], payload: Buffer, qos: 0 | 1, slots: number): Ring {
  const frames = Array.from({ length: slots }, (_, n) => publishFrame(topics[n % topics.length]!, payload, qos, n + 1));
  const frameBytes = frames[0]!.length;
  if (frames.some(({ length }) => length !== frameBytes)) throw new Error("topics of a load must have one length");
  return { slots, bytes: Buffer.concat(frames), frameBytes, payloadAt: frameBytes - payload.length };
}

/** Milliseconds of a clock that all processes of this machine share. */
export function nowMs(): number {
  const [seconds, nanoseconds] = process.hrtime();
  return seconds * 1000 + nanoseconds / 1e6;
}
