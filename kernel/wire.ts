/** Numbers, texts and bytes one behind the other, as they go from one process of the gateway to another. */

export interface WireWriter {
  /** Bytes since the last {@link take}. */
  readonly length: number;
  byte(value: number): void;
  /** A whole number from 0 to 2^53 - 1, in as few bytes as it takes. */
  number(value: number): void;
  /** Any number, in eight bytes. */
  double(value: number): void;
  text(value: string): void;
  bytes(value: Uint8Array): void;
  /** A frame of all since the last call: its length in four bytes, then the content. It is the caller's. */
  take(): Buffer;
}

export interface WireReader {
  readonly done: boolean;
  byte(): number;
  number(): number;
  double(): number;
  text(): string;
  /** A view on the frame, not a copy. */
  bytes(): Buffer;
}

const headBytes = 4;
const startBytes = 16 * 1024;
/** A scratch buffer that one large message has made larger is given back. */
const keptBytes = 1024 * 1024;

export function createWireWriter(): WireWriter {
  let scratch = Buffer.allocUnsafe(startBytes);
  let at = headBytes;

  function fit(more: number): void {
    if (at + more <= scratch.length) return;
    const larger = Buffer.allocUnsafe(Math.max(scratch.length * 2, at + more));
    scratch.copy(larger, 0, 0, at);
    scratch = larger;
  }

  function number(value: number): void {
    fit(8);
    let left = value;
    while (left > 0x7f) {
      scratch[at++] = (left % 128) | 0x80;
      left = Math.floor(left / 128);
    }
    scratch[at++] = left;
  }

  return {
    get length() {
      return at - headBytes;
    },
    byte(value) {
      fit(1);
      scratch[at++] = value;
    },
    number,
    double(value) {
      fit(8);
      at = scratch.writeDoubleBE(value, at);
    },
    text(value) {
      const length = Buffer.byteLength(value);
      number(length);
      fit(length);
      at += scratch.write(value, at);
    },
    bytes(value) {
      number(value.length);
      fit(value.length);
      scratch.set(value, at);
      at += value.length;
    },
    take() {
      scratch.writeUInt32BE(at - headBytes, 0);
      const frame = Buffer.from(scratch.subarray(0, at));
      if (scratch.length > keptBytes) scratch = Buffer.allocUnsafe(startBytes);
      at = headBytes;
      return frame;
    },
  };
}

/** @param frame without its length; what is read beyond it throws a RangeError */
export function createWireReader(frame: Buffer): WireReader {
  let at = 0;

  function byte(): number {
    const value = frame[at++];
    if (value === undefined) throw new RangeError("a frame ends too early");
    return value;
  }

  function number(): number {
    let value = 0;
    let scale = 1;
    for (;;) {
      const next = byte();
      value += (next & 0x7f) * scale;
      if (next < 0x80) return value;
      scale *= 128;
    }
  }

  function bytes(): Buffer {
    const length = number();
    if (at + length > frame.length) throw new RangeError("a frame ends too early");
    at += length;
    return frame.subarray(at - length, at);
  }

  return {
    get done() {
      return at >= frame.length;
    },
    byte,
    number,
    double() {
      at += 8;
      return frame.readDoubleBE(at - 8);
    },
    text() {
      const length = number();
      if (at + length > frame.length) throw new RangeError("a frame ends too early");
      at += length;
      return frame.toString("utf8", at - length, at);
    },
    bytes,
  };
}

/** Cuts what comes in into frames. @param onFrame gets each without its length */
export function createFrameSplitter(onFrame: (frame: Buffer) => void): (chunk: Buffer) => void {
  let parts: Buffer[] = [];
  let have = 0;
  let need = headBytes;

  return (chunk) => {
    parts.push(chunk);
    have += chunk.length;
    if (have < need) return;
    let all = parts.length === 1 ? chunk : Buffer.concat(parts, have);
    need = headBytes;
    while (all.length >= headBytes) {
      need = headBytes + all.readUInt32BE(0);
      if (all.length < need) break;
      onFrame(all.subarray(headBytes, need));
      all = all.subarray(need);
      need = headBytes;
    }
    parts = all.length > 0 ? [all] : [];
    have = all.length;
  };
}
