/** An admitted client: what becomes of its packets, its deliveries and its last words. */
import { encodeAck, encodeSuback, type InPacket, pingresp } from "./codec.ts";
import type { CloseReason, Connection } from "./connection.ts";
import { SluiceError } from "./errors.ts";
import { createInflight, type Inflight } from "./inflight.ts";
import { createLimiter, type Limiter } from "./limiter.ts";
import { createLane, type Job, type Lane, type Outcome } from "./pipeline.ts";
import type { Client, Message, PublishPacket, SubscribePacket } from "./plugin.ts";
import type { ProxyMetrics } from "./proxy-metrics.ts";
import type { ProxySpec } from "./spec.ts";
import { maxSubscriptions } from "./session.ts";
import type { Delivery, ProxyStore, SessionHandle } from "./store.ts";
import { topicFilterProblem, topicNameProblem } from "./topics.ts";

/** What all peers of a proxy share. */
export interface PeerDeps {
  /** The options of now. */
  readonly spec: ProxySpec;
  readonly store: ProxyStore;
  readonly meters: ProxyMetrics;
  now(): number;
  run(job: Job, done: (outcome: Outcome) => void): Outcome | undefined;
  /** The store failed this client. */
  storeFailed(clientId: string, error: unknown): void;
}

/** The SUBACK code of a topic filter that is not granted [MQTT-3.9.3-2]. */
const refusedCode = 0x80;

/** A class because there are as many as clients. */
export class Peer {
  readonly client: Client;
  private readonly connection: Connection;
  private readonly handle: SessionHandle;
  private readonly deps: PeerDeps;
  private readonly inflight: Inflight;
  private publishLimit: Limiter | undefined;
  private readonly publishLane: Lane = createLane();
  private subscribeLane: Lane | undefined;
  private will: Message | undefined;
  private faultTimer: NodeJS.Timeout | undefined;

  constructor(
    connection: Connection,
    client: Client,
    handle: SessionHandle,
    will: Message | undefined,
    deps: PeerDeps,
  ) {
    this.connection = connection;
    this.client = client;
    this.handle = handle;
    this.will = will;
    this.deps = deps;
    const { meters } = deps;
    this.limitPublishes();
    this.inflight = createInflight({
      retryMs: () => deps.spec.retryInterval * 1000,
      resend(frame) {
        if (!connection.hasRoom) return;
        meters.resent();
        connection.send(frame);
      },
    });
  }

  /** After the CONNACK: what waited for this client is sent, oldest first. */
  attach(): void {
    this.handle.attach((delivery, again) => this.deliver(delivery, again), this.deps.spec.maxInflight);
  }

  /** `clientPublishLimit` is new, or has changed. */
  limitPublishes(): void {
    const { spec } = this.deps;
    this.publishLimit = spec.clientPublishLimit && createLimiter(spec.clientPublishLimit, () => this.deps.now());
  }

  /** The connection takes deliveries again. */
  drained(): void {
    this.handle.resume();
  }

  /** @param done its will and its Disconnect pipeline, if any, are through */
  closed(why: CloseReason, done: () => void): void {
    clearTimeout(this.faultTimer);
    this.inflight.close();
    this.guard(Promise.resolve(this.handle.close()));
    const words: Job[] = [];
    // A restart of the gateway is not the death of a device.
    if (this.will && why !== "disconnect" && why !== "shutdown") {
      this.deps.meters.messageIn();
      words.push(this.publishJob({ ...this.will, dup: false, packetId: undefined }, "will"));
    }
    const packet = { graceful: why === "disconnect" };
    words.push({ type: "Disconnect", origin: "client", packet, client: this.client, lane: createLane() });
    let left = words.length;
    for (const job of words) {
      this.run(job, (outcome) => {
        if (job.origin === "will" && outcome.kind !== "passed") this.deps.meters.dropped(nameOf(outcome));
        if (--left === 0) done();
      });
    }
  }

  packet(packet: InPacket): void {
    switch (packet.cmd) {
      case "publish":
        this.publish(packet);
        break;
      case "puback": {
        const delivery = this.inflight.settle(packet.packetId);
        if (delivery) this.handle.settle(delivery);
        break;
      }
      case "subscribe":
        this.subscribe(packet);
        break;
      case "unsubscribe":
        this.unsubscribe(packet);
        break;
      case "pingreq":
        this.deps.meters.sent("pingresp");
        this.connection.send(pingresp);
        break;
      case "disconnect":
        this.will = undefined;
        this.connection.close("disconnect");
        break;
      default:
        // A second CONNECT never leaves the decoder; the rest belongs to QoS 2.
        this.connection.close("protocolError");
    }
  }

  private deliver(delivery: Delivery, again: boolean): boolean {
    if (!this.connection.hasRoom) return false;
    this.deps.meters.delivered();
    this.connection.send(this.inflight.encode(delivery, again));
    return true;
  }

  private publish(publish: InPacket & { cmd: "publish" }): void {
    const { connection, publishLimit } = this;
    const { meters } = this.deps;
    if (publish.qos === 2) {
      connection.close("protocolError");
      return;
    }
    if (publishLimit && !publishLimit.admit(publish.bytes)) {
      meters.delayed();
      connection.defer(publish, publishLimit.waitMs());
      return;
    }
    meters.messageIn();
    const { topic, payload, qos, retain, dup, packetId } = publish;
    const work = connection.begin(packetId ?? 0, publish.bytes);
    this.run(this.publishJob({ topic, payload, qos, retain, dup, packetId }, "client"), (outcome) => {
      const final = isFinal(outcome);
      if (outcome.kind !== "passed" && (final || qos === 0)) meters.dropped(nameOf(outcome));
      if (qos > 0) {
        if (final) meters.sent("puback");
        else meters.withheld(nameOf(outcome));
      }
      connection.finish(work, final);
      if (outcome.kind === "disconnected") connection.close("pipeline");
      else if (!final && qos > 0) this.giveGrace();
    });
  }

  private publishJob(packet: PublishPacket, origin: "client" | "will"): Job {
    const { topic } = packet;
    const final = this.deps.spec.brokerMode ? () => this.fanOut(packet, topic) : undefined;
    return { type: "Publish", origin, packet, client: this.client, lane: this.publishLane, final };
  }

  /** brokerMode: what the pipeline left of the message goes to the subscribers. */
  private fanOut({ topic, payload, qos, retain }: PublishPacket, published: string): void | Promise<unknown> {
    const invalid = topic === published ? undefined : topicNameProblem(topic);
    if (invalid) throw new SluiceError("TOPIC_INVALID", `a filter left a topic that is not valid: ${invalid}`);
    const stored = this.deps.store.publish({ topic, payload, qos, retain }, { from: this.client.id });
    if (stored instanceof Promise) return stored;
  }

  /** No ack: the client has to send again, which in 3.1.x it only does on a new connection [MQTT-4.4.0-1]. */
  private giveGrace(): void {
    if (this.connection.closed) return;
    this.faultTimer ??= setTimeout(() => this.connection.close("fault"), this.deps.spec.faultGraceMs);
  }

  private subscribe({ packetId, subscriptions }: InPacket & { cmd: "subscribe" }): void {
    const packet: SubscribePacket = {
      packetId,
      subscriptions: subscriptions.map(({ topicFilter, qos }) => ({ topicFilter, qos, refused: false })),
    };
    const lane = (this.subscribeLane ??= createLane());
    this.run({ type: "Subscribe", origin: "client", packet, client: this.client, lane }, (outcome) => {
      if (outcome.kind === "disconnected") this.connection.close("pipeline");
      else this.guard(this.grant(packet, outcome.kind === "passed"));
    });
  }

  /** One code per topic filter, in their order [MQTT-3.8.4-5]; in effect before the SUBACK leaves. */
  private async grant({ packetId, subscriptions }: SubscribePacket, allowed: boolean): Promise<void> {
    const { handle } = this;
    const codes: number[] = [];
    const granted: { topicFilter: string; isNew: boolean }[] = [];
    for (const { topicFilter, qos, refused } of subscriptions) {
      const why = this.refusal(topicFilter, allowed && !refused);
      if (why !== undefined) {
        this.deps.meters.subscriptionRefused(why);
        codes.push(refusedCode);
        continue;
      }
      // Until QoS 2 exists.
      const code = qos === 0 ? 0 : 1;
      const options = {
        qos: code,
        noLocal: false,
        retainAsPublished: false,
        retainHandling: 0,
        identifier: 0,
      } as const;
      const stored = handle.subscribe(topicFilter, options);
      const { isNew } = stored instanceof Promise ? await stored : stored;
      granted.push({ topicFilter, isNew });
      codes.push(code);
    }
    this.deps.meters.sent("suback");
    this.connection.send(encodeSuback(packetId, codes));
    for (const { topicFilter, isNew } of granted) {
      const delivered = handle.deliverRetained(topicFilter, isNew);
      if (delivered instanceof Promise) await delivered;
    }
  }

  private refusal(topicFilter: string, allowed: boolean): string | undefined {
    const { subscriptions } = this.handle;
    if (!allowed) return "policy";
    if (topicFilterProblem(topicFilter) !== undefined) return "invalid";
    return subscriptions.size >= maxSubscriptions && !subscriptions.has(topicFilter) ? "tooMany" : undefined;
  }

  private unsubscribe({ packetId, topicFilters }: InPacket & { cmd: "unsubscribe" }): void {
    const lane = (this.subscribeLane ??= createLane());
    const packet = { packetId, topicFilters };
    this.run({ type: "Unsubscribe", origin: "client", packet, client: this.client, lane }, (outcome) => {
      if (outcome.kind === "disconnected") this.connection.close("pipeline");
      else if (outcome.kind === "fault") this.giveGrace();
      else this.guard(this.release(packetId, outcome.kind === "passed" ? topicFilters : []));
    });
  }

  /** 3.1.x knows no refusal of an UNSUBSCRIBE: a policy that forbids it keeps the subscription, and the UNSUBACK comes. */
  private async release(packetId: number, topicFilters: readonly string[]): Promise<void> {
    for (const topicFilter of topicFilters) {
      const stored = this.handle.unsubscribe(topicFilter);
      if (stored instanceof Promise) await stored;
    }
    this.deps.meters.sent("unsuback");
    this.connection.send(encodeAck("unsuback", packetId));
  }

  private run(job: Job, settle: (outcome: Outcome) => void): void {
    const outcome = this.deps.run(job, settle);
    if (outcome) settle(outcome);
  }

  /** A store that fails must not end the process; the client that it failed is closed and comes again. */
  private guard(work: Promise<unknown>): void {
    work.catch((error: unknown) => {
      this.deps.storeFailed(this.client.id, error);
      this.connection.close("fault");
    });
  }
}

/** design.md §4: what passed and what is a verdict is acked, since no retry would change it; a fault never is. */
function isFinal(outcome: Outcome): boolean {
  if (outcome.kind === "unhandled") return outcome.verdict;
  return outcome.kind !== "fault" && outcome.kind !== "disconnected";
}

function nameOf(outcome: Outcome): string {
  return outcome.kind === "unhandled" ? outcome.result : outcome.kind;
}
