/** One worker's stream to the store: its calls are made here, and what comes for its clients goes there. */
import type { Duplex } from "node:stream";
import { serialize } from "node:v8";
import { createChannel } from "./channel.ts";
import { messageOf, SluiceError } from "./errors.ts";
import type { PublishOutcome } from "./plugin.ts";
import { createHandOver } from "./hand-over.ts";
import { inTurn } from "./in-turn.ts";
import { leaveWords, leaveWriting, making } from "./left-behind.ts";
import { noteWill, passOnWork, tellBack } from "./moved-clients.ts";
import type { Acquisition, Awaitable, LostReason, SessionHandle } from "./store.ts";
import type { Holder, Link, Shared } from "./store-parties.ts";
import {
  ask,
  lostReasons,
  readMessage,
  readSubscription,
  numberOfUncounted,
  readWill,
  receiptNames,
  tell,
  writeSubscription,
} from "./store-wire.ts";
import type { WireReader } from "./wire.ts";

export interface StoreLink {
  /** Resolves when the worker has nothing of the store any more. */
  readonly closed: Promise<void>;
  /** Clients that are connected to it. */
  readonly connections: number;
  close(): void;
}

/** How long a worker may take to answer that its connection has given the session up. */
const giveUpMs = 2000;
const countsMs = 250;

export function serveStore(stream: Duplex, sharedOf: (name: string) => Shared): StoreLink {
  const names: string[] = [];
  const holders = new Map<number, Holder>();
  const seen = new Set<Shared>();
  const told = new Map<number, string>();
  const ended = Promise.withResolvers<void>();
  const handOver = createHandOver(() => channel);

  const channel = createChannel(stream, {
    onFrame(frame) {
      while (!frame.done) receive(frame);
    },
    onFlush: () => handOver.flushed(),
    onRoom: () => handOver.resume(),
    onClose: () => void end(),
  });
  const { out } = channel;
  const counting = setInterval(tellCounts, countsMs).unref();

  const link: Link = {
    channel,
    numberOf(proxy) {
      const number = names.indexOf(proxy.served.name);
      return number === -1 ? undefined : number;
    },
    post,
  };

  function post(kind: number, write: () => void): void {
    if (!channel.isOpen) return;
    out.byte(kind);
    write();
    channel.sent();
  }

  function proxyAt(number: number): Shared {
    // Only when it is needed: a worker may be ahead of the change that brings the proxy.
    const proxy = sharedOf(names[number] ?? "");
    seen.add(proxy);
    return proxy;
  }

  function failed(request: number, error: unknown): void {
    post(tell.failure, () => {
      out.number(request);
      out.text(error instanceof SluiceError ? error.code : "STORE_FAILED");
      out.text(messageOf(error) ?? "");
    });
  }

  /**
   * Makes a call and sends its answer, at once where it is there at once.
   * @param done called when it was made, whether or not anybody is there to be answered
   */
  function answer<T>(request: number, call: () => Awaitable<T>, write: (value: T) => void, done?: () => void): void {
    const send = (value: T): void => {
      post(tell.answer, () => {
        out.number(request);
        write(value);
      });
      done?.();
    };
    try {
      const value = call();
      if (value instanceof Promise) value.then(send, (error: unknown) => failed(request, error));
      else send(value);
    } catch (error) {
      failed(request, error);
    }
  }

  function receive(frame: WireReader): void {
    const kind = frame.byte();
    switch (kind) {
      case ask.open:
        names[frame.number()] = frame.text();
        break;
      case ask.publish:
        publish(frame);
        break;
      case ask.acquire:
        acquire(frame);
        break;
      case ask.subscribe: {
        const [request, holder] = [frame.number(), holderAt(frame)];
        const [topicFilter, options] = readSubscription(frame);
        answer(
          request,
          () => holder?.handle?.subscribe(topicFilter, options) ?? { isNew: false },
          ({ isNew }) => out.byte(isNew ? 1 : 0),
        );
        break;
      }
      case ask.deliverRetained: {
        const [request, holder, topicFilter, isNew] = [frame.number(), holderAt(frame), frame.text(), frame.byte()];
        answer(request, () => holder?.handle?.deliverRetained(topicFilter, isNew === 1), nothing);
        break;
      }
      case ask.unsubscribe: {
        const [request, holder, topicFilter] = [frame.number(), holderAt(frame), frame.text()];
        answer(
          request,
          () => holder?.handle?.unsubscribe(topicFilter) ?? false,
          (had) => out.byte(had ? 1 : 0),
        );
        break;
      }
      case ask.attach: {
        const [holder, credit] = [holderAt(frame), frame.number()];
        holder?.handle?.attach((delivery, again) => handOver.deliver(holder, delivery, again), credit);
        break;
      }
      case ask.settle: {
        const [holder, packetId] = [holderAt(frame), frame.number()];
        const delivery = holder?.inflight.get(packetId);
        holder?.inflight.delete(packetId);
        if (delivery) holder?.handle?.settle(delivery);
        break;
      }
      case ask.release: {
        const [request, holder, packetId] = [frame.number(), holderAt(frame), frame.number()];
        const delivery = holder?.inflight.get(packetId);
        answer(request, () => (delivery ? holder?.handle?.release(delivery) : undefined), nothing);
        break;
      }
      case ask.inboundAdd: {
        const [request, holder, packetId] = [frame.number(), holderAt(frame), frame.number()];
        answer(
          request,
          () => making(holder, packetId, holder?.handle?.inbound.add(packetId)),
          nothing,
          () => cameIn(holder, packetId),
        );
        break;
      }
      case ask.inboundDelete: {
        const [request, holder, packetId] = [frame.number(), holderAt(frame), frame.number()];
        answer(request, () => holder?.handle?.inbound.delete(packetId), nothing);
        break;
      }
      case ask.close: {
        const [request, holder, expiry] = [frame.number(), holderAt(frame), frame.number()];
        readUnderWay(frame, holder);
        answer(request, () => holder && close(holder, expiry === 0 ? undefined : expiry - 1), nothing);
        break;
      }
      case ask.taken: {
        const [holder, count, bytes] = [holderAt(frame), frame.number(), frame.number()];
        if (holder) handOver.taken(holder, count, bytes);
        break;
      }
      case ask.forget:
        holders.delete(frame.number());
        break;
      case ask.ready: {
        proxyAt(frame.number()).lastWords.ready(link);
        break;
      }
      case ask.willDone: {
        const holder = holderAt(frame);
        if (holder) {
          holder.will = undefined;
          holder.handle?.willDone?.();
        }
        break;
      }
      case ask.begun: {
        const [number, id] = [frame.number(), frame.number()];
        proxyAt(number).lastWords.begun(link, id);
        break;
      }
      case ask.said: {
        const [number, id] = [frame.number(), frame.number()];
        proxyAt(number).lastWords.said(link, id);
        break;
      }
      case ask.query: {
        const [request, number] = [frame.number(), frame.number()];
        answer(
          request,
          () => proxyAt(number).served.store.query(),
          (found) => out.bytes(serialize(found)),
        );
        break;
      }
      case ask.remove: {
        const [request, number, clientId] = [frame.number(), frame.number(), frame.text()];
        answer(
          request,
          () => {
            tellBack(proxyAt(number), clientId, undefined, 2);
            return proxyAt(number).served.store.remove(clientId);
          },
          (had) => out.byte(had ? 1 : 0),
        );
        break;
      }
      case ask.gaveUp: {
        const holder = holderAt(frame);
        readUnderWay(frame, holder);
        holder?.gaveUp?.();
        break;
      }
      case ask.will: {
        const [number, clientId, waits] = [frame.number(), frame.text(), frame.byte() === 1];
        noteWill(link, proxyAt(number), clientId, waits);
        break;
      }
      case ask.workEnded: {
        const [number, clientId, packetId, outcome] = [frame.number(), frame.text(), frame.number(), frame.text()];
        passOnWork(link, proxyAt(number), clientId, packetId, outcome);
        break;
      }
      case ask.admit: {
        const [request, number, of] = [frame.number(), frame.number(), frame.byte()];
        const [address, bytes] = [frame.text(), frame.number()];
        answer(
          request,
          () => proxyAt(number).served.admit(of === 0 ? "address" : "proxy", address, bytes),
          (admitted) => out.byte(admitted ? 1 : 0),
        );
        break;
      }
      default:
        throw new RangeError(`message ${kind} is not known`);
    }
  }

  function holderAt(frame: WireReader): Holder | undefined {
    return holders.get(frame.number());
  }

  function publish(frame: WireReader): void {
    const [request, number, flags] = [frame.number(), frame.number(), frame.byte()];
    const to = (flags & 1) === 0 ? undefined : frame.text();
    let holder: Holder | undefined;
    let packetId = 0;
    if ((flags & 2) !== 0) {
      holder = holderAt(frame);
      packetId = frame.number();
    }
    const { from, ...message } = readMessage(frame);
    const inbound = holder?.handle && { handle: holder.handle, packetId };
    const receipts =
      (flags & 4) === 0
        ? undefined
        : (clientId: string, receipt: (typeof receiptNames)[number]): void => {
            post(tell.receipt, () => {
              out.number(request);
              out.text(clientId);
              out.byte(receiptNames.indexOf(receipt));
            });
          };
    answer(
      request,
      () => {
        const proxy = proxyAt(number);
        const { store } = proxy.served;
        const options = { from, inbound, receipts, countAll: (flags & 8) !== 0 };
        const go = (): Awaitable<PublishOutcome> =>
          to === undefined ? store.publish(message, options) : store.publishTo(to, message, options);
        // What a client publishes behind a message that has to wait waits too: for the answer, not for the way to and fro.
        const isFree = store.keepsOrder || from === undefined;
        return making(inbound && holder, packetId, isFree ? go() : inTurn(proxy.publishing, from, go));
      },
      ({ matched, connected, durable, uncounted }) => {
        out.byte((durable ? 1 : 0) | (inbound ? 2 : 0) | (numberOfUncounted(uncounted) << 2));
        out.number(matched);
        out.number(connected);
      },
      inbound && (() => cameIn(holder, packetId)),
    );
  }

  /** Where the client has a newer connection by now, that one has to know of the id too. */
  function cameIn(holder: Holder | undefined, packetId: number): void {
    if (!holder) return;
    const current = holder.proxy.holders.get(holder.clientId);
    if (!current?.handle || current === holder || !current.handle.inbound.has(packetId)) return;
    current.link.post(tell.inbound, () => {
      current.link.channel.out.number(current.id);
      current.link.channel.out.number(packetId);
    });
  }

  function acquire(frame: WireReader): void {
    const [request, number, id, clientId, flags, expirySec] = [
      frame.number(),
      frame.number(),
      frame.number(),
      frame.text(),
      frame.byte(),
      frame.number(),
    ];
    const username = (flags & 2) === 0 ? undefined : frame.text();
    const info = { username, address: frame.text() };
    const protocolVersion = frame.byte();
    const client = { id: clientId, ...info, protocolVersion };
    const will = (flags & 4) === 0 ? undefined : { will: readWill(frame), client };
    answer(
      request,
      () =>
        take(proxyAt(number), id, {
          clientId,
          cleanStart: (flags & 1) !== 0,
          expirySec,
          info,
          protocolVersion,
          will,
        }),
      ({ holder, underWay }) => {
        const { handle, proxy } = holder;
        if (!handle) throw new Error("acquired without a handle");
        holder.ordinal = proxy.lastOrdinal = handle.ordinal ?? Math.max(proxy.lastOrdinal + 1, proxy.served.now());
        out.byte(handle.present ? 1 : 0);
        out.number(proxy.lastOrdinal);
        out.number(handle.subscriptions.size);
        for (const [topicFilter, options] of handle.subscriptions) writeSubscription(out, topicFilter, options);
        const inbound = handle.present ? idsOf(handle) : [];
        for (const ids of [inbound, underWay]) {
          out.number(ids.length);
          for (const packetId of ids) out.number(packetId);
        }
      },
    );
  }

  async function take(
    proxy: Shared,
    id: number,
    client: Omit<Acquisition, "onLost">,
  ): Promise<{ holder: Holder; underWay: readonly number[] }> {
    const { clientId, info, protocolVersion = 0 } = client;
    const { served } = proxy;
    const old = proxy.holders.get(clientId);
    if (served.maxConnections > 0 && !old && proxy.holders.size >= served.maxConnections) {
      throw new SluiceError("PROXY_FULL", `${served.name} has ${proxy.holders.size} clients, as many as it may`);
    }
    const holder: Holder = {
      id,
      link,
      proxy,
      clientId,
      client: { id: clientId, ...info, protocolVersion },
      will: client.will?.will,
      sessionExpiry: client.expirySec,
      ordinal: undefined,
      endedAt: undefined,
      why: undefined,
      handle: undefined,
      writing: new Map(),
      inflight: new Map(),
      untaken: 0,
      untakenBytes: 0,
      isBlocked: false,
      isOver: false,
      gaveUp: undefined,
    };
    const givenUp = old && old.link !== link ? whenGivenUp(old) : undefined;
    proxy.holders.set(clientId, holder);
    proxy.peak = Math.max(proxy.peak, proxy.holders.size);
    holders.set(id, holder);
    try {
      const handle = await served.store.acquire({ ...client, onLost: (why) => lost(holder, why) });
      holder.handle = handle;
      if (holder.isOver) await handle.close();
      // What the client has in a pipeline there is known from then on.
      await givenUp;
      tellBack(proxy, clientId, link, handle.present ? 1 : 0);
      return { holder, underWay: handle.present ? proxy.whereabouts.worksElsewhere(link, clientId) : [] };
    } catch (error) {
      over(holder);
      holders.delete(id);
      throw error;
    }
  }

  function whenGivenUp(old: Holder): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, giveUpMs);
    old.gaveUp = () => {
      clearTimeout(timer);
      resolve();
    };
    return promise;
  }

  function lost(holder: Holder, why: LostReason): void {
    holder.why = why;
    // Where another connection of this gateway has it, that is known by now.
    if (why === "takenOver" && holder.proxy.holders.get(holder.clientId) === holder) {
      holder.proxy.movedOn.set(holder.clientId, holder);
    }
    over(holder);
    // Its will need not wait any longer; that it does has been told when this is answered.
    if (why === "removed") holder.gaveUp = () => tellBack(holder.proxy, holder.clientId, undefined, 2);
    post(tell.lost, () => {
      out.number(holder.id);
      out.byte(lostReasons.indexOf(why));
    });
  }

  /** It holds nothing any more; what is under way for it may still refer to it. */
  function over(holder: Holder): void {
    holder.isOver = true;
    holder.endedAt ??= holder.proxy.served.now();
    holder.inflight.clear();
    handOver.forget(holder);
    const { holders: connected } = holder.proxy;
    if (connected.get(holder.clientId) === holder) connected.delete(holder.clientId);
  }

  function close(holder: Holder, expirySec?: number): Awaitable<void> {
    if (expirySec !== undefined) holder.sessionExpiry = expirySec;
    over(holder);
    return holder.handle?.close(expirySec);
  }

  function readUnderWay(frame: WireReader, holder: Holder | undefined): void {
    const ids = Array.from({ length: frame.number() }, () => frame.number());
    if (holder && ids.length > 0) holder.proxy.whereabouts.works(link, holder.clientId, ids);
  }

  function tellCounts(): void {
    for (const proxy of seen) {
      const number = link.numberOf(proxy);
      if (number === undefined) continue;
      const { sessions, subscriptions, queued, queuedBytes, retained, retainedBytes } = proxy.served.store.counts;
      const counts = [sessions, subscriptions, queued, queuedBytes, retained, retainedBytes];
      const text = counts.join();
      if (told.get(number) === text) continue;
      told.set(number, text);
      post(tell.counts, () => {
        out.number(number);
        for (const count of counts) out.number(count);
      });
    }
  }

  /** The worker is gone, whatever of: its clients come back elsewhere, to the sessions that they had. */
  async function end(): Promise<void> {
    clearInterval(counting);
    for (const proxy of seen) proxy.lastWords.gone(link);
    const closing: Promise<void>[] = [];
    const lostOf = new Map<Shared, number>();
    for (const holder of holders.values()) {
      const { proxy, isOver } = holder;
      holder.gaveUp?.();
      if (!isOver) {
        lostOf.set(proxy, (lostOf.get(proxy) ?? 0) + 1);
        closing.push(Promise.resolve(close(holder)));
      }
      leaveWords(holder, !isOver);
    }
    for (const [proxy, count] of lostOf) proxy.served.lost(count);
    for (const proxy of seen) {
      for (const { clientId, packetIds } of proxy.whereabouts.gone(link)) {
        for (const packetId of packetIds) {
          passOnWork(link, proxy, clientId, packetId, JSON.stringify({ kind: "fault", error: "its worker has ended" }));
        }
      }
    }
    for (const holder of holders.values()) if (holder.writing.size > 0) leaveWriting(link, holder);
    holders.clear();
    await Promise.allSettled(closing);
    ended.resolve();
  }

  return {
    closed: ended.promise,
    get connections() {
      return [...holders.values()].filter(({ isOver }) => !isOver).length;
    },
    close: () => channel.close(),
  };
}

function nothing(): void {
  // The answer itself is all there is to say.
}

const highestPacketId = 65_535;

/** Of QoS 2 messages from the client between PUBLISH and PUBREL. */
function idsOf({ inbound }: SessionHandle): readonly number[] {
  if (inbound.ids) return [...inbound.ids()];
  const ids: number[] = [];
  for (let id = 1; id <= highestPacketId; id++) if (inbound.has(id)) ids.push(id);
  return ids;
}
