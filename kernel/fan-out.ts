/** One message to everybody who is to get it: waits for crowded subscribers, hands it out, and makes it safe. */
import type { Audience, Target } from "./audience.ts";
import type { Deliveries } from "./deliveries.ts";
import { SluiceError } from "./errors.ts";
import type { Grant } from "./grant.ts";
import type { InboundIds } from "./inbound-ids.ts";
import type { Ledger } from "./ledger.ts";
import type { Message, PublishOutcome } from "./plugin.ts";
import type { Retained } from "./retained.ts";
import { costOf, type Entry, type Session } from "./session.ts";
import type { Held } from "./session-handle.ts";
import type { Awaitable, PublishOptions, SessionHandle, StoreOptions } from "./store.ts";

/** A connected subscriber that settles nothing for this long counts as absent: it no longer slows its publishers down. */
const stalledAfterMs = 5000;

/** How long a publish waits for a crowded subscriber before it takes what room is left. */
const crowdedWaitMs = 10_000;

const nobody: PublishOutcome = Object.freeze({ matched: 0, connected: 0, durable: true });

export interface FanOut {
  publish(message: Message, o: PublishOptions): Awaitable<PublishOutcome>;
  /** Past all subscriptions. */
  publishTo(held: Held | undefined, message: Message, o: PublishOptions): Awaitable<PublishOutcome>;
}

export interface FanOutDeps {
  readonly proxy: string;
  /** Of now. */
  readonly options: StoreOptions;
  readonly audience: Audience;
  readonly deliveries: Deliveries;
  readonly retained: Retained;
  readonly inbound: InboundIds;
  readonly ledger: Ledger | undefined;
  /** Undefined where it has ended. */
  sessionOf(handle: SessionHandle): Session | undefined;
  /** Throws where the store takes nothing any more. */
  check(): void;
}

export function createFanOut(deps: FanOutDeps): FanOut {
  const { proxy, audience, deliveries, retained, inbound: inboundIds, ledger } = deps;
  const now = (): number => deps.options.now();

  function keepsUp(held: Held): boolean {
    return held.handle !== undefined && now() - held.settledAt < stalledAfterMs;
  }

  async function waitFor<T>(held: Held, again: () => Awaitable<T>): Promise<T> {
    const timer = setTimeout(() => held.session.release(), stalledAfterMs);
    await held.session.room();
    clearTimeout(timer);
    return again();
  }

  /**
   * Above QoS 0, before anybody gets it: whom to wait for; undefined = everybody has room.
   * @throws SluiceError QUEUE_FULL
   */
  function crowded(targets: readonly Target[], bytes: number, o: PublishOptions, until: number): Held | undefined {
    const { queue } = deps.options;
    if (deliveries.bytes + bytes > queue.maxTotalBytes) {
      throw new SluiceError(
        "QUEUE_FULL",
        `the sessions of ${proxy} hold ${deliveries.bytes} bytes, as much as queue.maxTotalBytes allows; the message was not accepted`,
      );
    }
    for (const { key: held, value: grant } of targets) {
      if (grant.qos === 0 || !held.session.isCrowded()) continue;
      const waits = keepsUp(held);
      // A client that publishes to itself must not wait for acks that stand behind its own packets.
      if (waits && held.session.clientId !== o.from && (until === 0 || now() < until)) return held;
      if (held.session.isFull(bytes) && (waits || queue.onFull === "fault")) {
        throw new SluiceError(
          "QUEUE_FULL",
          `the queue of ${held.session.clientId} on ${proxy} is full; the message was not accepted`,
        );
      }
    }
    return undefined;
  }

  function publish(message: Message, o: PublishOptions, until = 0): Awaitable<PublishOutcome> {
    deps.check();
    const targets = audience.match(message.topic, o.from);
    if (targets.length === 0 && !message.retain && o.inbound === undefined) return nobody;
    const bytes = costOf(message);
    if (message.qos > 0 && (targets.length > 0 || message.retain)) {
      const held = crowded(targets, bytes, o, until);
      if (held) return waitFor(held, () => publish(message, o, until || now() + crowdedWaitMs));
    }
    return handOut(message, bytes, targets, o, message.retain);
  }

  function publishTo(
    held: Held | undefined,
    message: Message,
    o: PublishOptions,
    until = 0,
  ): Awaitable<PublishOutcome> {
    deps.check();
    if (!held) return nobody;
    const grant: Grant = { qos: message.qos, retainAsPublished: false, identifiers: [], own: undefined };
    const targets: Target[] = [{ key: held, value: grant }];
    const bytes = costOf(message);
    if (message.qos > 0 && crowded(targets, bytes, o, until)) {
      return waitFor(held, () => publishTo(held, message, o, until || now() + crowdedWaitMs));
    }
    return handOut(message, bytes, targets, o, false);
  }

  /** Does somebody whose session outlives the process count on it? */
  function lasts(
    message: Message,
    targets: readonly Target[],
    retain: boolean,
    publisher: Session | undefined,
  ): boolean {
    if (!ledger || message.qos === 0) return false;
    if (retain || (publisher && publisher.expirySec > 0)) return true;
    return targets.some(({ key, value }) => value.qos > 0 && key.session.expirySec > 0);
  }

  /** @throws SluiceError STORE_FAILED */
  function handOut(
    message: Message,
    bytes: number,
    targets: readonly Target[],
    { from, inbound, receipts }: PublishOptions,
    retain: boolean,
  ): Awaitable<PublishOutcome> {
    const { options } = deps;
    if (message.qos === 0 && deliveries.bytes + bytes > options.queue.maxTotalBytes) {
      options.onDropped("store_full", Math.max(1, targets.length));
      return { matched: targets.length, connected: 0, durable: true };
    }
    const publisher = inbound && deps.sessionOf(inbound.handle);
    const packetId = inbound?.packetId ?? 0;
    const mustLast = lasts(message, targets, retain, publisher);
    if (mustLast) ledger?.check();
    const kept = deliveries.keep(message, from, bytes);
    if (retain && !retained.set(kept)) options.onDropped("retained_full", 1);
    if (publisher) inboundIds.add(publisher, packetId);
    const given: Entry[] | undefined = mustLast ? [] : undefined;
    let connected = 0;
    for (const target of targets) {
      if (target.key.handle) connected++;
      const entry = deliveries.give(target, kept, message.retain && target.value.retainAsPublished, receipts);
      given?.push(entry);
    }
    const outcome = { matched: targets.length, connected, durable: true };
    const safe = mustLast ? ledger?.commit() : undefined;
    if (!safe) {
      if (publisher) inboundIds.settle(publisher, packetId);
      return outcome;
    }
    return safe.then(
      () => {
        if (publisher) inboundIds.settle(publisher, packetId);
        return outcome;
      },
      (error: unknown) => {
        // Its publisher sends it again: who has not got it yet, need not get it twice.
        for (const [at, { key }] of targets.entries()) withdraw(key.session, given?.[at]);
        if (publisher) inboundIds.delete(publisher, packetId);
        throw error;
      },
    );
  }

  function withdraw(session: Session, entry: Entry | undefined): void {
    if (!entry || session.inflight.has(entry)) return;
    entry.withdrawn = true;
    if (entry.recorded) ledger?.forgetDelivery(session, entry);
  }

  return { publish, publishTo };
}
