/**
 * An MQTT client that does just what a test tells it to: sends any bytes, shows every packet that comes, acknowledges
 * nothing by itself, and may stop reading. For what no client library would send or expose.
 */
import { connect as connectTcp, type Socket } from "node:net";
import { connect as connectTls, type ConnectionOptions } from "node:tls";
import mqttPacket, { type IConnectPacket, type Packet } from "mqtt-packet";

type PacketOf<C extends Packet["cmd"]> = Extract<Packet, { cmd: C }>;

export interface RawClient {
  readonly socket: Socket;
  /** Packets received and not yet taken, oldest first. */
  readonly received: readonly Packet[];
  readonly isClosed: boolean;
  /** Where set, gets each packet instead of `received`: for floods. */
  onPacket: ((packet: Packet) => void) | undefined;
  /** Resolves when the connection has ended, by whomever. */
  readonly closed: Promise<void>;
  send(...packets: (Packet | Buffer)[]): void;
  /** Takes the next packet, which must be of this type. */
  expect<C extends Packet["cmd"]>(cmd: C): Promise<PacketOf<C>>;
  /** Takes the next `count` packets, all of which must be of this type. */
  expectMany<C extends Packet["cmd"]>(cmd: C, count: number): Promise<PacketOf<C>[]>;
  /** Takes everything that had been sent to us when a PINGREQ sent now was answered. */
  flush(): Promise<Packet[]>;
  /** Resolves when the gateway has closed the connection; rejects where it stays open, or sends anything before. */
  expectClose(timeoutMs?: number): Promise<void>;
  /** The next packet of this type, and then the end of the connection: a CONNACK that refuses, or a DISCONNECT. */
  expectLast<C extends Packet["cmd"]>(cmd: C): Promise<PacketOf<C>>;
  /** CONNECT, with CONNACK 0 for an answer. */
  connect(options?: Partial<IConnectPacket>): Promise<PacketOf<"connack">>;
  /** SUBSCRIBE to one topic filter. Answers the granted code. */
  subscribe(topic: string, qos?: 0 | 1 | 2): Promise<number>;
  /** PUBLISH at QoS 1, and its PUBACK. */
  publish(topic: string, payload?: string | Buffer): Promise<void>;
  disconnect(): Promise<void>;
  /** Drops the connection without a DISCONNECT. */
  destroy(): void;
}

const defaultTimeoutMs = 10_000;

export interface RawOptions {
  readonly tls?: ConnectionOptions;
  readonly protocolVersion?: 3 | 4 | 5;
}

/** Resolves when the TCP connection (with `tls`, the session) is there. Nothing is sent. */
export async function openRawClient(port: number, options: RawOptions = {}): Promise<RawClient> {
  const { tls, protocolVersion = 4 } = options;
  const socket = tls ? connectTls({ host: "127.0.0.1", port, ...tls }) : connectTcp({ host: "127.0.0.1", port });
  socket.setNoDelay(true);
  const received: Packet[] = [];
  const arrivals = new Set<() => void>();
  let lastPacketId = 0;
  let isClosed = false;

  const closed = new Promise<void>((resolve) => {
    socket.once("close", () => {
      isClosed = true;
      resolve();
      for (const arrived of arrivals) arrived();
    });
  });
  // A reset is one way of closing; what matters is that it closed.
  socket.on("error", () => undefined);
  const parser = mqttPacket.parser({ protocolVersion });
  parser.on("packet", (packet) => {
    if (client.onPacket) {
      client.onPacket(packet);
      return;
    }
    received.push(packet);
    for (const arrived of arrivals) arrived();
  });
  parser.on("error", (error: Error) => socket.destroy(error));
  socket.on("data", (chunk: Buffer) => parser.parse(chunk));
  await new Promise<void>((resolve, reject) => {
    socket.once(tls ? "secureConnect" : "connect", resolve);
    socket.once("error", reject);
  });

  /** Resolves as soon as `ready` answers something; it is asked after each packet and at the end, and then no more. */
  function wait<T>(what: string, ready: () => T | undefined, timeoutMs = defaultTimeoutMs): Promise<T> {
    const { promise, resolve, reject } = Promise.withResolvers<T>();
    const fail = (why: string) => {
      const got = received.map(({ cmd }) => cmd).slice(0, 20);
      settle(() =>
        reject(new Error(`waiting for ${what}: ${why} (received and not taken: ${got.join(", ") || "nothing"})`)),
      );
    };
    const timer = setTimeout(() => fail(`nothing within ${timeoutMs} ms`), timeoutMs);
    const settle = (how: () => void) => {
      clearTimeout(timer);
      arrivals.delete(arrived);
      how();
    };
    const arrived = () => {
      try {
        const value = ready();
        if (value !== undefined) settle(() => resolve(value));
        else if (isClosed) fail("the connection was closed");
      } catch (error) {
        settle(() => reject(error));
      }
    };
    arrivals.add(arrived);
    arrived();
    return promise;
  }

  function take<C extends Packet["cmd"]>(cmd: C): PacketOf<C> | undefined {
    const packet = received.shift();
    if (packet && packet.cmd !== cmd) throw new Error(`expected ${cmd}, got ${describe(packet)}`);
    return packet as PacketOf<C> | undefined;
  }

  const client: RawClient = {
    socket,
    received,
    get isClosed() {
      return isClosed;
    },
    closed,
    onPacket: undefined,
    send(...packets) {
      for (const packet of packets) {
        socket.write(Buffer.isBuffer(packet) ? packet : mqttPacket.generate(packet, { protocolVersion }));
      }
    },
    expect: (cmd) => wait(cmd, () => take(cmd)),
    async expectMany(cmd, count) {
      const packets = [];
      while (packets.length < count)
        packets.push(await wait(`${cmd} ${packets.length + 1} of ${count}`, () => take(cmd)));
      return packets;
    },
    async flush() {
      client.send({ cmd: "pingreq" });
      await wait("pingresp", () => received.find(({ cmd }) => cmd === "pingresp"));
      const packets = received.splice(0);
      return packets.filter(({ cmd }) => cmd !== "pingresp");
    },
    async expectClose(timeoutMs = defaultTimeoutMs) {
      await wait(
        "the end of the connection",
        () => {
          const [packet] = received;
          if (packet) throw new Error(`expected the connection to be closed, got ${describe(packet)}`);
          return isClosed ? true : undefined;
        },
        timeoutMs,
      );
    },
    async expectLast(cmd) {
      const packet = await client.expect(cmd);
      await client.expectClose();
      return packet;
    },
    async connect(connect = {}) {
      client.send({
        cmd: "connect",
        clientId: "raw",
        clean: true,
        keepalive: 0,
        protocolVersion,
        protocolId: protocolVersion === 3 ? "MQIsdp" : "MQTT",
        ...connect,
      });
      const connack = await client.expect("connack");
      const code = connack.returnCode ?? connack.reasonCode;
      if (code !== 0) throw new Error(`CONNACK ${code}`);
      return connack;
    },
    async subscribe(topic, qos = 1) {
      const messageId = ++lastPacketId;
      client.send({ cmd: "subscribe", messageId, subscriptions: [{ topic, qos }] });
      const suback = await client.expect("suback");
      if (suback.messageId !== messageId) throw new Error(`SUBACK ${suback.messageId} for SUBSCRIBE ${messageId}`);
      return suback.granted[0] as number;
    },
    async publish(topic, payload = "") {
      const messageId = ++lastPacketId;
      client.send({ cmd: "publish", topic, payload, qos: 1, messageId, dup: false, retain: false });
      const puback = await client.expect("puback");
      if (puback.messageId !== messageId) throw new Error(`PUBACK ${puback.messageId} for PUBLISH ${messageId}`);
    },
    async disconnect() {
      client.send({ cmd: "disconnect" });
      socket.end();
      socket.resume();
      await closed;
    },
    destroy() {
      socket.destroy();
    },
  };
  return client;
}

/** Opens, and sends CONNECT with this client id. */
export async function connectRaw(
  port: number,
  clientId: string,
  connect: Partial<IConnectPacket> = {},
  options: RawOptions = {},
): Promise<RawClient> {
  const client = await openRawClient(port, options);
  await client.connect({ clientId, ...connect });
  return client;
}

/** A PUBLISH as bytes or as `send` takes it. */
export function publishPacket(topic: string, payload: string | Buffer, messageId?: number, dup = false): Packet {
  return {
    cmd: "publish",
    topic,
    payload,
    dup,
    retain: false,
    qos: messageId === undefined ? 0 : 1,
    ...(messageId !== undefined && { messageId }),
  };
}

function describe(packet: Packet): string {
  if (packet.cmd !== "publish") return JSON.stringify(packet);
  const { payload, ...rest } = packet;
  return JSON.stringify({ ...rest, payload: payload.toString().slice(0, 50) });
}
