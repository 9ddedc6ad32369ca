/** Splits a connection's bytes into whole packets, bounded by what the fixed header says before any body is buffered. */
import { connectVersion, firstByteProblem, lengthProblem, malformed, packetTypes } from "./frame.ts";
import type { Refusal } from "./frame.ts";
import type { ProtocolVersion } from "./packet.ts";

/** Not to be called from within `onFrame`, save for `resume`. */
export interface Framing {
  /**
   * Feeds bytes, in order. Returns why the connection must be closed, once a packet is refused; nothing is read
   * afterwards, nor after a DISCONNECT [MQTT-3.14.4-2].
   */
  push(chunk: Buffer): Refusal | undefined;
  /**
   * Goes on after a pause, with the bytes kept. The caller stops reading from the socket meanwhile: what is held is then
   * at most one chunk and one incomplete packet.
   */
  resume(): Refusal | undefined;
}

/**
 * Takes one whole packet, `bytes` from `at` to `end`, for `by`. Returns a refusal, or false to pause. `version`: 0 until
 * CONNECT.
 */
export type OnFrame<T> = (
  by: T,
  bytes: Buffer,
  at: number,
  end: number,
  version: ProtocolVersion | 0,
) => Refusal | boolean;

/** A class because there are as many as connections. */
class State<T> implements Framing {
  readonly maxPacketBytes: number;
  readonly onFrame: OnFrame<T>;
  readonly by: T;
  version: ProtocolVersion | 0 = 0;
  refusal: Refusal | undefined;
  /** A DISCONNECT came. */
  ended = false;
  /** The start of a packet that is not whole yet; a buffer of its own, filled up to `filled`. */
  partial: Buffer | undefined;
  filled = 0;
  /** What is left unread while paused. */
  unread: Buffer | undefined;
  paused = false;
  /** `onFrame` is being called; and `resume` was called from there. */
  delivering = false;
  resumed = false;

  constructor(maxPacketBytes: number, onFrame: OnFrame<T>, by: T) {
    this.maxPacketBytes = maxPacketBytes;
    this.onFrame = onFrame;
    this.by = by;
  }

  push(chunk: Buffer): Refusal | undefined {
    if (this.refusal !== undefined || this.ended) return this.refusal;
    if (!this.paused) return read(this, chunk);
    this.unread = this.unread === undefined ? chunk : Buffer.concat([this.unread, chunk]);
    return undefined;
  }

  resume(): Refusal | undefined {
    if (this.delivering) {
      this.resumed = true;
      return undefined;
    }
    const { unread } = this;
    this.paused = false;
    this.unread = undefined;
    return unread === undefined ? this.refusal : read(this, unread);
  }
}

/** @param by what `onFrame` gets, so that it needs no closure for each connection */
export function createFraming<T>(maxPacketBytes: number, onFrame: OnFrame<T>, by: T): Framing {
  return new State(maxPacketBytes, onFrame, by);
}

function read<T>(state: State<T>, chunk: Buffer): Refusal | undefined {
  let at = 0;
  while (at < chunk.length) {
    if (state.partial === undefined) {
      const size = packetSize(state, chunk, at, chunk.length);
      if (size < 0) return state.refusal;
      const end = at + size;
      if (size === 0 || end > chunk.length) {
        append(state, chunk, at, chunk.length, size);
        return undefined;
      }
      deliver(state, chunk, at, end);
      at = end;
    } else {
      at = complete(state, state.partial, chunk, at);
    }
    if (state.refusal !== undefined || state.ended) return state.refusal;
    if (state.paused) {
      if (at < chunk.length) state.unread = chunk.subarray(at);
      return undefined;
    }
  }
  return undefined;
}

/** Adds to the incomplete packet what it lacks, and delivers it once it is whole. Returns where the chunk goes on. */
function complete<T>(state: State<T>, partial: Buffer, chunk: Buffer, from: number): number {
  let at = from;
  let bytes = partial;
  for (;;) {
    const size = packetSize(state, bytes, 0, state.filled);
    if (size < 0) return at;
    if (size === state.filled) {
      state.partial = undefined;
      state.filled = 0;
      deliver(state, bytes, 0, size);
      return at;
    }
    if (at === chunk.length) return at;
    // The header is completed byte by byte, since only its end says how many more are to come.
    const end = size === 0 ? at + 1 : Math.min(at + size - state.filled, chunk.length);
    bytes = append(state, chunk, at, end, size);
    at = end;
  }
}

/**
 * A packet of which at least this share has come gets room for the rest at once: it is copied once. Of others, whose
 * length is only claimed so far, the room grows with what comes.
 */
const wholeShare = 1 / 8;
const leastRoom = 16;
/** Bytes of a fixed header. */
const longestHeader = 5;

/** Copies bytes behind the incomplete packet. A claimed length alone takes no memory. */
function append<T>(state: State<T>, chunk: Buffer, from: number, to: number, size: number): Buffer {
  const needed = state.filled + to - from;
  let { partial } = state;
  if (partial === undefined || partial.length < needed) {
    const larger = Buffer.allocUnsafe(roomFor(needed, 2 * state.filled, size));
    partial?.copy(larger, 0, 0, state.filled);
    partial = larger;
    state.partial = larger;
  }
  chunk.copy(partial, state.filled, from, to);
  state.filled = needed;
  return partial;
}

function roomFor(needed: number, doubled: number, size: number): number {
  if (size === 0) return longestHeader;
  return needed >= size * wholeShare ? size : Math.min(Math.max(needed, doubled, leastRoom), size);
}

/** The whole packet's size by its fixed header; 0 = the header isn't whole yet, -1 = refused. */
function packetSize<T>(state: State<T>, bytes: Buffer, at: number, end: number): number {
  const first = bytes.readUInt8(at);
  const problem = firstByteProblem(first, state.version);
  if (problem !== undefined) return refuse(state, problem);
  let length = 0;
  for (let digits = 1; digits <= 4; digits++) {
    if (at + digits === end) return 0;
    const digit = bytes.readUInt8(at + digits);
    length |= (digit & 0x7f) << (7 * (digits - 1));
    if (digit < 0x80) {
      const size = 1 + digits + length;
      const fault = lengthProblem(first, length, digits, state.version);
      if (fault !== undefined) return refuse(state, fault);
      if (size <= state.maxPacketBytes) return size;
      const message = `a packet of ${size} bytes, over the maximum of ${state.maxPacketBytes} (maxPacketBytes)`;
      return refuse(state, { code: "PACKET_TOO_LARGE", message });
    }
  }
  return refuse(state, malformed("a remaining length of more than four bytes (MQTT 2.2.3)"));
}

function refuse<T>(state: State<T>, refusal: Refusal): -1 {
  state.refusal = refusal;
  state.partial = undefined;
  return -1;
}

function deliver<T>(state: State<T>, bytes: Buffer, at: number, end: number): void {
  const type = bytes.readUInt8(at) >> 4;
  state.resumed = false;
  state.delivering = true;
  const answer = state.onFrame(state.by, bytes, at, end, state.version);
  state.delivering = false;
  if (typeof answer === "object") {
    refuse(state, answer);
    return;
  }
  if (type === packetTypes.connect) state.version = connectVersion(bytes, at);
  else if (type === packetTypes.disconnect) state.ended = true;
  state.paused = !answer && !state.resumed;
}
