/** One client's connection: CONNECT deadline, keep alive, ordered acks, back-pressure, closed once. */
import type { Duplex } from "node:stream";
import { createDecoder, type Decoder, type InPacket, type Refusal } from "./codec.ts";
import { encodeDisconnect, type PublishTemplate, type ShortAck, shortAckBytes, writeShortAck } from "./encoder.ts";
import type { Remote } from "./listener.ts";
import type { ProtocolVersion } from "./packet.ts";
import type { Reason } from "./plugin.ts";
import { reasonCodeFor } from "./reasons.ts";
import type { Turns } from "./turns.ts";

/** Why a connection ended. `disconnect` is the only graceful one: the will is discarded [MQTT-3.14.4-3]. */
export type CloseReason =
  | "disconnect"
  | "connectionLost"
  | "connectTimeout"
  | "keepAliveTimeout"
  | "malformedPacket"
  | "packetTooLarge"
  | "protocolError"
  | "refused"
  | "takenOver"
  | "removed"
  | "storeLost"
  | "pipeline"
  | "fault"
  | "shutdown"
  | "workerEnded";

/** What an MQTT 5 client is told when the connection is closed. */
export interface Farewell {
  readonly reason: Reason;
  /** For people; left out where it does not fit. */
  readonly text?: string | undefined;
  /** Where to connect instead. */
  readonly serverReference?: string | undefined;
}

/** What it is told where nothing more exact is known; no DISCONNECT for the others [MQTT-3.14.0-1]. */
const farewells: Partial<Record<CloseReason, Farewell>> = {
  keepAliveTimeout: { reason: "keepAliveTimeout" },
  malformedPacket: { reason: "malformedPacket" },
  packetTooLarge: { reason: "packetTooLarge" },
  protocolError: { reason: "protocolError" },
  takenOver: { reason: "sessionTakenOver" },
  removed: { reason: "administrativeAction" },
  storeLost: { reason: "useAnotherServer" },
  pipeline: { reason: "unspecifiedError" },
  fault: { reason: "implementationSpecificError" },
  shutdown: { reason: "serverShuttingDown" },
};

/** Shared by all connections of a proxy, so that none carries closures of its own. */
export interface ConnectionOwner {
  /** Those of now: a config change reaches connections that are open. */
  readonly limits: ConnectionLimits;
  readonly turns: Turns;
  readonly crowd: Crowd;
  /** In order; never again once the connection is closed. */
  onPacket(connection: Connection, packet: InPacket): void;
  /** Bytes that are no MQTT; the owner closes, with a CONNACK where the refusal has one. */
  onRefusal(connection: Connection, refusal: Refusal): void;
  /** A defect of ours met by this client's bytes: the connection is closed, the others live on. */
  onFailure(connection: Connection, error: unknown): void;
  /** Nothing is read from now on. @param why one bit of `pause` */
  onPaused(connection: Connection, why: number): void;
  /** There is room for deliveries again. */
  onDrain(connection: Connection): void;
  /** A DISCONNECT is sent. */
  onDisconnect(connection: Connection): void;
  onClosed(connection: Connection, why: CloseReason): void;
}

/** What the connections of a proxy have in work together. */
export interface Crowd {
  inWork: number;
}

export interface ConnectionLimits {
  readonly maxPacketBytes: number;
  readonly maxInWork: number;
  readonly maxInWorkBytes: number;
  readonly connectTimeoutMs: number;
}

/** A PUBLISH under way; its ack leaves when those of the PUBLISHes before it have left or never will. */
export interface Work {
  /** 0 at QoS 0. */
  readonly packetId: number;
  readonly bytes: number;
  state: "pending" | "ended";
  /** Once it has ended; undefined = none is ever sent. */
  ack: Buffer | ShortAck | undefined;
}

/** Why nothing is read from the socket; bits of one number. */
export const pause = { auth: 1, work: 2, limit: 4, output: 8, shutdown: 16, turn: 32 } as const;

/** Pauses of our own making: the client can't be blamed for what we don't read, so its keep alive stands still. */
const ours = pause.auth | pause.work | pause.limit | pause.shutdown;

/** Bytes written that the peer has not taken: beyond this its packets wait too, for each would add an answer. */
const maxOutputBytes = 1024 * 1024;

/** Bytes that are written at once rather than at the end of the tick, so that a burst finds out that the peer is slow. */
const maxBatchBytes = 256 * 1024;

/**
 * With more than so many times `maxInWork` in work at all connections together, each may have no more than a fair share:
 * more would only wait longer, and what lives long is dear to collect.
 */
const crowdedTimes = 2;
const fairShare = 32;

/** Settled PUBLISHes in front of the list that are kept until it is worth moving the others. */
const maxSettled = 64;

/** How long a closed connection may take to send what was written before. */
const lingerMs = 2000;

/** A class because there are thousands: methods are shared, and an idle connection stays small. */
export class Connection {
  readonly remote: Remote;
  readonly socket: Duplex;
  closed: CloseReason | undefined;
  /** 0 until the CONNACK that admits the client. */
  protocolVersion: ProtocolVersion | 0 = 0;
  /** Bytes of the largest packet that the client takes [MQTT-3.1.2-24]. */
  maximumPacketSize = Infinity;
  private readonly owner: ConnectionOwner;
  private readonly decoder: Decoder;
  private paused = 0;
  private decoding = false;
  /** What leaves next. A negative number is of the buffer behind it: where its packet id goes, and which. */
  private out: (Buffer | ShortAck)[] = [];
  private outBytes = 0;
  private flushing = false;
  private blocked = false;
  private works: Work[] = [];
  /** In front of it are those whose acks have left. */
  private firstWork = 0;
  private inWork = 0;
  private inWorkBytes = 0;
  private lastReceivedAt = performance.now();
  private keepAliveMs = 0;
  /** Of the CONNECT deadline first, of keep alive afterwards. */
  private timer: NodeJS.Timeout | undefined;
  private limitTimer: NodeJS.Timeout | undefined;

  constructor(socket: Duplex, remote: Remote, owner: ConnectionOwner) {
    this.socket = socket;
    this.remote = remote;
    this.owner = owner;
    this.decoder = createDecoder(this);
    this.timer = setTimeout(() => this.close("connectTimeout"), owner.limits.connectTimeoutMs);
    carry(socket, this);
  }

  /** For the decoder: those of now, for as long as the connection lasts. */
  get maxPacketBytes(): number {
    return this.owner.limits.maxPacketBytes;
  }

  /** From the decoder. */
  onPacket(packet: InPacket): boolean {
    this.owner.onPacket(this, packet);
    return this.paused === 0 && !this.closed;
  }

  get address(): string {
    return this.remote.address;
  }

  /** CONNECT has come: from here on keep alive watches. @param seconds 0 = none */
  startKeepAlive(seconds: number): void {
    clearTimeout(this.timer);
    this.timer = undefined;
    // One and a half times what was asked for [MQTT-3.1.2-24].
    this.keepAliveMs = seconds * 1500;
    if (this.keepAliveMs > 0) this.timer = setTimeout(() => this.checkKeepAlive(), this.keepAliveMs);
  }

  send(frame: Buffer | ShortAck): void {
    if (this.closed) return;
    const length = typeof frame === "number" ? shortAckBytes : frame.length;
    if (length > this.maximumPacketSize) {
      // Nothing that it could do without: it would wait for that.
      this.close("packetTooLarge");
      return;
    }
    this.out.push(frame);
    this.queued(length);
  }

  /** A PUBLISH whose bytes all subscribers share: its packet id is set where it is copied for the socket. */
  sendTemplate({ bytes, idAt }: PublishTemplate, packetId: number): void {
    if (this.closed) return;
    if (idAt >= 0) this.out.push(-(idAt * 0x1_0000 + packetId));
    this.out.push(bytes);
    this.queued(bytes.length);
  }

  private queued(length: number): void {
    this.outBytes += length;
    if (this.outBytes > maxBatchBytes) this.flush();
    if (this.flushing) return;
    // One write a tick, however many packets: the acks of a whole Kafka batch leave together.
    this.flushing = true;
    process.nextTick(flushLater, this);
  }

  /** What was sent in this tick leaves. */
  flushed(): void {
    this.flushing = false;
    this.flush();
  }

  /** False while the peer doesn't take what was written: deliveries wait, acks don't. */
  get hasRoom(): boolean {
    return !this.blocked && !this.closed;
  }

  pause(why: number): void {
    if ((this.paused & why) !== 0) return;
    if (this.paused === 0) this.socket.pause();
    this.paused |= why;
    this.owner.onPaused(this, why);
  }

  resume(why: number): void {
    if ((this.paused & why) === 0) return;
    if ((why & ours) !== 0) this.lastReceivedAt = performance.now();
    this.paused &= ~why;
    // Inside the decoder's loop it goes on by itself.
    if (this.paused !== 0 || this.closed || this.decoding) return;
    this.decode(undefined);
  }

  /** Hands the packet to the owner again after `ms`; until then nothing is read. */
  defer(packet: InPacket, ms: number): void {
    this.pause(pause.limit);
    this.limitTimer = setTimeout(() => {
      this.limitTimer = undefined;
      this.owner.onPacket(this, packet);
      // Unless it was deferred once more.
      if (this.limitTimer === undefined) this.resume(pause.limit);
    }, ms);
  }

  /** PUBLISH packets that have not left the pipeline. */
  get working(): number {
    return this.inWork;
  }

  /** A PUBLISH enters the pipeline. */
  begin(work: Work): void {
    if (work.packetId !== 0) this.works.push(work);
    this.inWork++;
    this.inWorkBytes += work.bytes;
    const { crowd, limits } = this.owner;
    const { maxInWork, maxInWorkBytes } = limits;
    const isCrowd = ++crowd.inWork > crowdedTimes * maxInWork && this.inWork >= fairShare;
    if (isCrowd || this.inWork >= maxInWork || this.inWorkBytes >= maxInWorkBytes) this.pause(pause.work);
  }

  /**
   * It has left the pipeline: PUBACKs and PUBRECs go out in the order of the PUBLISHes [MQTT-4.6.0-2] [MQTT-4.6.0-3]; a
   * fault, which has no `ack`, leaves a hole.
   */
  finish(work: Work, ack: Buffer | ShortAck | undefined): void {
    work.state = "ended";
    work.ack = ack;
    this.inWork--;
    this.inWorkBytes -= work.bytes;
    this.owner.crowd.inWork--;
    if (work.packetId !== 0 && this.works[this.firstWork] === work) this.acknowledge();
    if ((this.paused & pause.work) !== 0 && this.mayGoOn()) this.resume(pause.work);
  }

  /** Half of what it may have in work is through, or so much of all that there is no crowd any more. */
  private mayGoOn(): boolean {
    const { crowd, limits } = this.owner;
    const { maxInWork, maxInWorkBytes } = limits;
    const isCrowd = crowd.inWork > (crowdedTimes * maxInWork) / 2;
    const most = isCrowd ? Math.min(maxInWork, fairShare) : maxInWork;
    return this.inWork <= most / 2 && this.inWorkBytes <= maxInWorkBytes / 2;
  }

  private acknowledge(): void {
    const { works } = this;
    let at = this.firstWork;
    for (let next = works[at]; next && next.state === "ended"; next = works[++at]) {
      if (next.ack !== undefined) this.send(next.ack);
    }
    // Closed meanwhile.
    if (works !== this.works) return;
    this.firstWork = at;
    if (at === works.length || at > maxSettled) {
      works.splice(0, at);
      this.firstWork = 0;
    }
  }

  /** Once; what was sent before still leaves, where the peer takes it, and for MQTT 5 a DISCONNECT behind it. */
  close(why: CloseReason, farewell: Farewell | undefined = farewells[why]): void {
    if (this.closed) return;
    if (farewell && this.protocolVersion === 5) this.disconnect(farewell);
    this.flush();
    this.closed = why;
    clearTimeout(this.timer);
    clearTimeout(this.limitTimer);
    this.works = [];
    this.firstWork = 0;
    const { socket } = this;
    if (!socket.destroyed) {
      socket.removeAllListeners("data");
      // What the peer still sends is thrown away, or the end of its stream would never be seen.
      socket.resume();
      const linger = setTimeout(() => socket.destroy(), lingerMs);
      socket.once("close", () => clearTimeout(linger));
      socket.end(() => socket.destroy());
    }
    this.owner.onClosed(this, why);
  }

  private disconnect({ reason, text, serverReference }: Farewell): void {
    const code = reasonCodeFor("disconnect", reason);
    const full = {
      ...(text !== undefined && { reasonString: text }),
      ...(serverReference !== undefined && { serverReference }),
    };
    for (const frame of [encodeDisconnect(code, full), encodeDisconnect(code, {})]) {
      if (frame.length > this.maximumPacketSize) continue;
      this.owner.onDisconnect(this);
      this.send(frame);
      return;
    }
  }

  /** From the socket, as are the two below. */
  received(chunk: Buffer): void {
    this.lastReceivedAt = performance.now();
    const isFirst = !this.flushing;
    // What these bytes are answered with leaves behind them, without a tick of its own.
    this.flushing = true;
    this.decode(chunk);
    if (isFirst) this.flushed();
    if (!this.closed && this.owner.turns.spend(this, chunk.length)) this.pause(pause.turn);
  }

  /** Others have had theirs. */
  takeTurn(): void {
    this.resume(pause.turn);
  }

  private decode(chunk: Buffer | undefined): void {
    this.decoding = true;
    try {
      const refusal = chunk ? this.decoder.push(chunk) : this.decoder.resume();
      if (refusal && !this.closed) this.owner.onRefusal(this, refusal);
    } catch (error) {
      this.owner.onFailure(this, error);
      this.close("fault");
    } finally {
      this.decoding = false;
    }
    // Also where it paused and went on within the loop.
    if (this.paused === 0 && !this.closed && this.socket.isPaused()) this.socket.resume();
  }

  private flush(): void {
    if (this.out.length === 0 || this.closed || this.socket.destroyed) return;
    const [first] = this.out;
    const frame = this.out.length === 1 && typeof first === "object" ? first : joined(this.out, this.outBytes);
    this.out = [];
    this.outBytes = 0;
    if (!this.socket.write(frame)) this.blocked = true;
    if (this.socket.writableLength > maxOutputBytes) this.pause(pause.output);
  }

  drained(): void {
    this.blocked = false;
    this.resume(pause.output);
    if (!this.closed) this.owner.onDrain(this);
  }

  lost(): void {
    this.close("connectionLost");
  }

  private checkKeepAlive(): void {
    const idle = performance.now() - this.lastReceivedAt;
    const suspended = (this.paused & ours) !== 0;
    if (!suspended && idle >= this.keepAliveMs) {
      this.close("keepAliveTimeout");
      return;
    }
    this.timer = setTimeout(() => this.checkKeepAlive(), suspended ? this.keepAliveMs : this.keepAliveMs - idle);
  }
}

/** By this name a socket knows its connection, so that all sockets share their listeners. */
const carried = Symbol("connection");

interface Carrier extends Duplex {
  [carried]: Connection;
}

function carry(socket: Duplex, connection: Connection): void {
  (socket as Carrier)[carried] = connection;
  socket.on("data", onData).on("drain", onDrain).on("error", onLost).on("end", onLost).on("close", onLost);
}

function onData(this: Carrier, chunk: Buffer): void {
  this[carried].received(chunk);
}

function onDrain(this: Carrier): void {
  this[carried].drained();
}

function onLost(this: Carrier): void {
  this[carried].lost();
}

function flushLater(connection: Connection): void {
  connection.flushed();
}

function joined(frames: readonly (Buffer | ShortAck)[], length: number): Buffer {
  const bytes = Buffer.allocUnsafe(length);
  let at = 0;
  let patch = 0;
  for (const frame of frames) {
    if (typeof frame === "object") {
      frame.copy(bytes, at);
      if (patch > 0) bytes.writeUInt16BE(patch % 0x1_0000, at + Math.floor(patch / 0x1_0000));
      patch = 0;
      at += frame.length;
    } else if (frame < 0) {
      patch = -frame;
    } else {
      writeShortAck(frame, bytes, at);
      at += shortAckBytes;
    }
  }
  return bytes;
}
