/** A stream of bytes between two processes of the gateway: what is written in one tick leaves as one frame. */
import type { Duplex } from "node:stream";
import { createFrameSplitter, createWireReader, createWireWriter, type WireReader, type WireWriter } from "./wire.ts";

export interface Channel {
  /** Write one whole message, then call {@link sent}. */
  readonly out: WireWriter;
  sent(): void;
  /** The other side takes nothing at the moment, and much waits for it already: write only what must be. */
  readonly isFull: boolean;
  readonly isOpen: boolean;
  close(): void;
}

export interface ChannelOwner {
  /** Reads all messages of one frame. */
  onFrame(frame: WireReader): void;
  /** A frame is about to leave: what refers to others of the same frame starts anew. */
  onFlush?(): void;
  /** Not full any more. */
  onRoom?(): void;
  /** Once; nothing comes after it. @param error what broke it */
  onClose(error: Error | undefined): void;
}

/** A tick's messages leave earlier when they are this many bytes. */
const frameBytes = 256 * 1024;
/** What may wait to be written before {@link Channel.isFull}. */
const maxWaitingBytes = 16 * 1024 * 1024;

export function createChannel(stream: Duplex, owner: ChannelOwner): Channel {
  const out = createWireWriter();
  let isScheduled = false;
  let isOpen = true;
  let wasFull = false;

  function flush(): void {
    if (!isOpen || out.length === 0) return;
    owner.onFlush?.();
    stream.write(out.take());
  }

  function end(error?: Error): void {
    if (!isOpen) return;
    isOpen = false;
    stream.destroy();
    owner.onClose(error);
  }

  const split = createFrameSplitter((frame) => {
    if (!isOpen) return;
    try {
      owner.onFrame(createWireReader(frame));
    } catch (error) {
      // The two sides no longer mean the same by their bytes.
      end(error as Error);
    }
  });
  stream.on("data", split);
  stream.on("drain", () => {
    if (!wasFull) return;
    wasFull = false;
    owner.onRoom?.();
  });
  stream.on("error", end);
  stream.on("close", () => end());

  return {
    out,
    sent() {
      if (out.length >= frameBytes) {
        flush();
        return;
      }
      if (isScheduled) return;
      isScheduled = true;
      // Behind all sockets that this turn of the event loop reads from: their messages share one write.
      setImmediate(() => {
        isScheduled = false;
        flush();
      });
    },
    get isFull() {
      const isFull = stream.writableLength > maxWaitingBytes;
      wasFull ||= isFull;
      return isFull;
    },
    get isOpen() {
      return isOpen;
    },
    close() {
      flush();
      isOpen = false;
      stream.end();
    },
  };
}
