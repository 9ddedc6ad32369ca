/** The store as a worker has it: every call goes to the process that holds the sessions, all of a tick in one frame. */
import type { Duplex } from "node:stream";
import { deserialize } from "node:v8";
import { type Channel, createChannel } from "./channel.ts";
import { type Code, SluiceError } from "./errors.ts";
import type { Outcome } from "./outcome.ts";
import type { Message, PublishOutcome, SessionInfo } from "./plugin.ts";
import { createRemoteHandle, type RemoteHandle } from "./remote-handle.ts";
import type { ProxyPart, Siblings } from "./siblings.ts";
import {
  noCounts,
  type ProxyStore,
  type PublishOptions,
  type Receipt,
  type Store,
  type StoreCounts,
  type StoredMessage,
} from "./store.ts";
import {
  ask,
  lostReasons,
  readLastWords,
  readMessage,
  readSubscription,
  receiptNames,
  tell,
  uncountedOf,
  writeMessage,
  writeWill,
} from "./store-wire.ts";
import type { WireReader } from "./wire.ts";

export interface RemoteStore extends Store {
  open(proxy: string): RemoteProxyStore;
  /** Resolves when the other side is gone. */
  readonly closed: Promise<void>;
}

export interface RemoteProxyStore extends ProxyStore {
  readonly siblings: Siblings;
}

/** Asks, and resolves with what `read` makes of the answer. @throws SluiceError what the other side threw; STORE_CLOSED */
export type Request = <T>(kind: number, write: () => void, read: (answer: WireReader) => T) => Promise<T>;

interface Waiting {
  read(answer: WireReader): void;
  reject(error: SluiceError): void;
}

/** What is known of a publish whose receipts are still to come. */
interface Awaited {
  readonly receipts: NonNullable<PublishOptions["receipts"]>;
  waiting: number;
  isAnswered: boolean;
}

/** @param o.stream to a `StoreServer`'s */
export function createRemoteStore(o: { node: Store["node"]; caps: Store["caps"]; stream: Duplex }): RemoteStore {
  let lastRequest = 0;
  let lastHandle = 0;
  let isClosed = false;
  const waiting = new Map<number, Waiting>();
  const awaited = new Map<number, Awaited>();
  /** Of open connections. */
  const handles = new Map<number, RemoteHandle>();
  const proxies = new Map<string, RemoteProxyStore>();
  const parts: { part: ProxyPart | undefined; counts: StoreCounts; elsewhere: Elsewhere }[] = [];
  const ended = Promise.withResolvers<void>();
  /** A handle may be used as long as there is a packet of its connection in a pipeline; the other side waits for that. */
  const collected = new FinalizationRegistry<number>((id) => {
    post(ask.forget, () => channel.out.number(id));
  });
  let messages: StoredMessage[] = [];

  const channel: Channel = createChannel(o.stream, {
    onFrame(frame) {
      messages = [];
      while (!frame.done) receive(frame);
    },
    onClose: () => fail(),
  });
  const { out } = channel;

  function closedError(): SluiceError {
    return new SluiceError("STORE_CLOSED", "the process that holds the sessions is gone; nothing was accepted");
  }

  function fail(): void {
    isClosed = true;
    const all = [...waiting.values()];
    waiting.clear();
    awaited.clear();
    for (const asked of all) asked.reject(closedError());
    ended.resolve();
  }

  function post(kind: number, write: () => void): void {
    if (isClosed) return;
    out.byte(kind);
    write();
    channel.sent();
  }

  function begin(kind: number): number {
    const id = ++lastRequest;
    out.byte(kind);
    out.number(id);
    return id;
  }

  const request: Request = (kind, write, read) => {
    if (isClosed) return Promise.reject(closedError());
    const id = begin(kind);
    write();
    channel.sent();
    const { promise, resolve, reject } = Promise.withResolvers<ReturnType<typeof read>>();
    waiting.set(id, { read: (answer) => resolve(read(answer)), reject });
    return promise;
  };

  function receive(frame: WireReader): void {
    const kind = frame.byte();
    switch (kind) {
      case tell.answer:
        answered(frame);
        break;
      case tell.failure: {
        const id = frame.number();
        const error = new SluiceError(frame.text() as Code, frame.text());
        const asked = waiting.get(id);
        waiting.delete(id);
        awaited.delete(id);
        asked?.reject(error);
        break;
      }
      case tell.message:
        messages.push(readMessage(frame));
        break;
      case tell.deliver:
        deliver(frame);
        break;
      case tell.lost: {
        const id = frame.number();
        const why = lostReasons[frame.byte()] ?? "removed";
        const handle = handles.get(id);
        handles.delete(id);
        handle?.lost(why);
        post(ask.gaveUp, () => {
          out.number(id);
          if (handle) writeUnderWay(handle.proxy, handle.clientId);
          else out.number(0);
        });
        break;
      }
      case tell.receipt:
        received(frame.number(), frame.text(), receiptNames[frame.byte()] ?? "refused");
        break;
      case tell.counts: {
        const proxy = parts[frame.number()];
        const [sessions, subscriptions, queued, queuedBytes, retained, retainedBytes] = [
          frame.number(),
          frame.number(),
          frame.number(),
          frame.number(),
          frame.number(),
          frame.number(),
        ];
        if (proxy) proxy.counts = { sessions, subscriptions, queued, queuedBytes, retained, retainedBytes };
        break;
      }
      case tell.inbound: {
        const [id, packetId] = [frame.number(), frame.number()];
        handles.get(id)?.cameIn(packetId);
        break;
      }
      case tell.back: {
        const part = parts[frame.number()]?.part;
        const [clientId, what] = [frame.text(), frame.byte()];
        if (what === 2) part?.ended(clientId);
        else part?.back(clientId, what === 1);
        break;
      }
      case tell.speakFor: {
        const [number, id] = [frame.number(), frame.number()];
        const is = (what: number) => (): void => {
          post(what, () => {
            out.number(number);
            out.number(id);
          });
        };
        const words = readLastWords(frame);
        is(ask.begun)();
        // Once the other side has been told: this process may end of what comes now.
        setImmediate(() => {
          const part = parts[number]?.part;
          if (part) part.speakFor(words, is(ask.said));
          else is(ask.said)();
        });
        break;
      }
      case tell.workEnded: {
        const proxy = parts[frame.number()];
        const [clientId, packetId] = [frame.text(), frame.number()];
        const outcome = JSON.parse(frame.text()) as Outcome;
        proxy?.elsewhere.ended(clientId, packetId, outcome);
        break;
      }
      default:
        throw new RangeError(`message ${kind} is not known`);
    }
  }

  function answered(frame: WireReader): void {
    const id = frame.number();
    const asked = waiting.get(id);
    waiting.delete(id);
    if (!asked) throw new RangeError("an answer that nobody waits for");
    asked.read(frame);
    const told = awaited.get(id);
    if (!told) return;
    told.isAnswered = true;
    if (told.waiting === 0) awaited.delete(id);
  }

  function received(id: number, clientId: string, receipt: Receipt): void {
    const told = awaited.get(id);
    if (!told) return;
    told.waiting += receipt === "waiting" ? 1 : -1;
    told.receipts(clientId, receipt);
    if (told.waiting === 0 && told.isAnswered) awaited.delete(id);
  }

  function deliver(frame: WireReader): void {
    const handle = handles.get(frame.number());
    const message = messages[frame.number()];
    const flags = frame.byte();
    const packetId = frame.number();
    const count = frame.number();
    let identifiers = none;
    if (count > 0) identifiers = Array.from({ length: count }, () => frame.number());
    if (!message) throw new RangeError("a delivery of no message");
    const qos = (flags & 3) as StoredMessage["qos"];
    const delivery = { message, qos, retain: (flags & 4) !== 0, identifiers, packetId, released: (flags & 8) !== 0 };
    handle?.deliver(delivery, (flags & 16) !== 0);
  }

  /** QoS 2 messages of a client that are in a pipeline here: its next connection may be another worker's. */
  function writeUnderWay(proxy: number, clientId: string): void {
    const part = parts[proxy]?.part;
    const ids = part?.underWay(clientId) ?? [];
    out.number(ids.length);
    for (const packetId of ids) out.number(packetId);
    // Only now, and not inside of the message that is being written.
    queueMicrotask(() => {
      for (const packetId of ids) {
        part?.join(clientId, packetId, (outcome) => {
          post(ask.workEnded, () => {
            out.number(proxy);
            out.text(clientId);
            out.number(packetId);
            out.text(outcomeText(outcome));
          });
        });
      }
    });
  }

  function publish(proxy: number, to: string | undefined, message: Message, options: PublishOptions) {
    if (isClosed) return Promise.reject(closedError());
    const { from, inbound, receipts, countAll } = options;
    const id = begin(ask.publish);
    out.number(proxy);
    out.byte((to === undefined ? 0 : 1) | (inbound ? 2 : 0) | (receipts ? 4 : 0) | (countAll ? 8 : 0));
    if (to !== undefined) out.text(to);
    const handle = inbound ? (inbound.handle as RemoteHandle["handle"]) : undefined;
    if (inbound && handle) {
      out.number(handle.id);
      out.number(inbound.packetId);
    }
    writeMessage(out, message, from, 0);
    channel.sent();
    if (receipts) awaited.set(id, { receipts, waiting: 0, isAnswered: false });
    const { promise, resolve, reject } = Promise.withResolvers<PublishOutcome>();
    waiting.set(id, {
      read(answer) {
        const flags = answer.byte();
        const [matched, connected] = [answer.number(), answer.number()];
        if (inbound && handle && (flags & 2) !== 0) handle.cameIn(inbound.packetId);
        const uncounted = uncountedOf(flags >> 2);
        resolve({ matched, connected, durable: (flags & 1) !== 0, ...(uncounted && { uncounted }) });
      },
      reject,
    });
    return promise;
  }

  function openProxy(name: string): RemoteProxyStore {
    const index = parts.length;
    const own = { part: undefined as ProxyPart | undefined, counts: noCounts, elsewhere: createElsewhere() };
    parts.push(own);
    post(ask.open, () => {
      out.number(index);
      out.text(name);
    });
    return {
      publish: (message, options = {}) => publish(index, undefined, message, options),
      publishTo: (clientId, message, options = {}) => publish(index, clientId, message, options),
      async acquire({ clientId, cleanStart, expirySec, info, onLost, protocolVersion = 0, will }) {
        const id = ++lastHandle;
        const remote = createRemoteHandle({
          id,
          proxy: index,
          clientId,
          onLost,
          request,
          post,
          out,
          ended: () => void handles.delete(id),
          writeUnderWay: () => writeUnderWay(index, clientId),
        });
        handles.set(id, remote);
        try {
          const begun = await request(
            ask.acquire,
            () => {
              out.number(index);
              out.number(id);
              out.text(clientId);
              out.byte((cleanStart ? 1 : 0) | (info.username === undefined ? 0 : 2) | (will ? 4 : 0));
              out.number(expirySec);
              if (info.username !== undefined) out.text(info.username);
              out.text(info.address);
              out.byte(protocolVersion);
              if (will) writeWill(out, will.will);
            },
            (answer) => {
              const present = answer.byte() === 1;
              const ordinal = answer.number();
              const subscriptions = Array.from({ length: answer.number() }, () => readSubscription(answer));
              const inbound = Array.from({ length: answer.number() }, () => answer.number());
              const underWay = Array.from({ length: answer.number() }, () => answer.number());
              remote.acquired({ present, ordinal, subscriptions, inbound });
              return underWay;
            },
          );
          for (const packetId of begun) own.elsewhere.begun(clientId, packetId, own.part);
        } catch (error) {
          handles.delete(id);
          throw error;
        }
        collected.register(remote.handle, id);
        return remote.handle;
      },
      query: () =>
        request(
          ask.query,
          () => out.number(index),
          (answer) => deserialize(answer.bytes()) as readonly SessionInfo[],
        ),
      remove: (clientId) =>
        request(
          ask.remove,
          () => {
            out.number(index);
            out.text(clientId);
          },
          (answer) => answer.byte() === 1,
        ),
      keepsOrder: true,
      get counts() {
        return own.counts;
      },
      siblings: {
        listen(part) {
          own.part = part;
        },
        ready: () => post(ask.ready, () => out.number(index)),
        willWaits(clientId, waits) {
          post(ask.will, () => {
            out.number(index);
            out.text(clientId);
            out.byte(waits ? 1 : 0);
          });
        },
        admit: (of, address, bytes) =>
          request(
            ask.admit,
            () => {
              out.number(index);
              out.byte(of === "address" ? 0 : 1);
              out.text(address);
              out.number(bytes);
            },
            (answer) => answer.byte() === 1,
          ),
      },
    };
  }

  return {
    node: o.node,
    caps: o.caps,
    closed: ended.promise,
    async start() {
      // The stream is open.
    },
    stop() {
      if (!isClosed) {
        channel.close();
        fail();
      }
      return Promise.resolve();
    },
    health: () => ({
      live: !isClosed,
      durable: !isClosed,
      reasons: isClosed ? ["the process that holds the sessions is gone"] : [],
    }),
    open(name) {
      let proxy = proxies.get(name);
      if (!proxy) proxies.set(name, (proxy = openProxy(name)));
      return proxy;
    },
  };
}

const none: readonly number[] = [];

interface Elsewhere {
  begun(clientId: string, packetId: number, part: ProxyPart | undefined): void;
  ended(clientId: string, packetId: number, outcome: Outcome): void;
}

/** QoS 2 messages of clients that are here, in a pipeline of another worker. */
function createElsewhere(): Elsewhere {
  const works = new Map<string, (outcome: Outcome) => void>();
  const keyOf = (clientId: string, packetId: number): string => `${packetId} ${clientId}`;
  return {
    begun(clientId, packetId, part) {
      const key = keyOf(clientId, packetId);
      if (part && !works.has(key)) works.set(key, part.begunElsewhere(clientId, packetId));
    },
    ended(clientId, packetId, outcome) {
      const key = keyOf(clientId, packetId);
      const done = works.get(key);
      works.delete(key);
      done?.(outcome);
    },
  };
}

function outcomeText(outcome: Outcome): string {
  if (outcome.kind !== "fault") return JSON.stringify(outcome);
  return JSON.stringify({ kind: "fault", error: "it failed in another worker" });
}
