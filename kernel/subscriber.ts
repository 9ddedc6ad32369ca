/** A client as subscriber: its SUBSCRIBEs and UNSUBSCRIBEs, and the deliveries that come of them. */
import type { Admitted, PeerDeps } from "./admitted.ts";
import { encodeAck, encodeSuback, encodeSubackV5, encodeUnsubackV5 } from "./encoder.ts";
import { encodeDelivery, isPlain, templateOf } from "./delivery-frame.ts";
import { createInflight, type Inflight } from "./inflight.ts";
import { type Outcome, reasonOf } from "./outcome.ts";
import type { AckIn, SubscribeIn, UnsubscribeIn } from "./packet.ts";
import { createLane, type Job, type Lane } from "./pipeline.ts";
import type { Reason, SubscribePacket } from "./plugin.ts";
import { codes, reasonCodeFor } from "./reasons.ts";
import { maxSubscriptions } from "./session.ts";
import type { Awaitable, Delivery } from "./store.ts";
import { createTopicAliasesOut, type TopicAliasesOut } from "./topic-aliases.ts";
import { topicFilterProblem } from "./topics.ts";

/** A class because there are as many as clients. */
export class Subscriber {
  private readonly admitted: Admitted;
  private readonly deps: PeerDeps;
  private readonly isV5: boolean;
  /** Not before the first delivery above QoS 0: most clients only publish. */
  private inflight: Inflight | undefined;
  private readonly aliases: TopicAliasesOut | undefined;
  private lane: Lane | undefined;

  constructor(admitted: Admitted, deps: PeerDeps) {
    const { connect } = admitted;
    this.admitted = admitted;
    this.deps = deps;
    this.isV5 = connect.protocolVersion === 5;
    const aliases = Math.min(connect.properties?.topicAliasMaximum ?? 0, deps.spec.topicAliasMaximum);
    this.aliases = aliases > 0 ? createTopicAliasesOut(aliases) : undefined;
  }

  /** What waited for this client is sent, oldest first. */
  attach(): void {
    this.admitted.handle.attach((delivery, again) => this.deliver(delivery, again), this.window());
  }

  acknowledge(ack: AckIn): Awaitable<void> {
    return this.flight().acknowledge(ack);
  }

  close(): void {
    this.inflight?.close();
  }

  private flight(): Inflight {
    const { connection, handle, connect } = this.admitted;
    const { deps } = this;
    return (this.inflight ??= createInflight({
      protocolVersion: connect.protocolVersion,
      retryMs: () => deps.spec.retryInterval * 1000,
      hasRoom: () => connection.hasRoom,
      send(frame, cmd, again) {
        if (again) deps.meters.resent();
        if (!again || cmd === "pubrel") deps.meters.sent(cmd);
        connection.send(frame);
      },
      settle: (delivery) => handle.settle(delivery),
      release: (delivery) => handle.release(delivery),
    }));
  }

  /** QoS 1 and 2 deliveries that may be unacknowledged at a time [MQTT-3.3.4-9]. */
  private window(): number {
    const { connect } = this.admitted;
    return Math.min(this.deps.spec.maxInflight, connect.properties?.receiveMaximum ?? 65_535);
  }

  private deliver(delivery: Delivery, again: boolean): boolean {
    const { connection, handle, connect } = this.admitted;
    const { meters } = this.deps;
    if (!connection.hasRoom) return false;
    const { qos, message, released } = delivery;
    if (released) {
      this.flight().add(delivery);
      meters.resent();
      meters.sent("pubrel");
      connection.send(encodeAck("pubrel", delivery.packetId));
      return true;
    }
    // Those of the last connection may be more than this one takes at a time.
    if (qos > 0 && this.isV5 && this.flight().size >= (connect.properties?.receiveMaximum ?? 65_535)) return false;
    const { protocolVersion } = connect;
    const alias = again ? undefined : this.aliases?.of(message.topic);
    const template = templateOf(delivery, protocolVersion, alias);
    if (template.bytes.length > connection.maximumPacketSize) {
      // As if it had been sent and acknowledged [MQTT-3.1.2-25].
      meters.dropped("packetTooLarge");
      if (qos > 0) queueMicrotask(() => handle.settle(delivery));
      return true;
    }
    if (alias?.isNew) this.aliases?.known(message.topic);
    if (qos > 0) this.flight().add(delivery);
    if (again) meters.resent();
    else meters.delivered();
    if (!again && isPlain(template)) connection.sendTemplate(template, delivery.packetId);
    else
      connection.send(encodeDelivery(delivery, template, { dup: again && qos > 0, now: () => this.deps.now(), alias }));
    return true;
  }

  subscribe(subscribe: SubscribeIn, run: (job: Job, settle: (outcome: Outcome) => void) => void): void {
    const { packetId, subscriptions, userProperties } = subscribe;
    const packet: SubscribePacket = {
      packetId,
      subscriptions: subscriptions.map((each) => ({ ...each, refused: false })),
      userProperties,
    };
    run(this.job({ type: "Subscribe", packet }), (outcome) => {
      const { connection } = this.admitted;
      if (outcome.kind === "disconnected") {
        connection.close("pipeline", { reason: outcome.reason, text: outcome.text });
      } else {
        this.guard(this.grant(packet, subscribe, outcome.kind === "passed" ? undefined : refusalOf(outcome)));
      }
    });
  }

  unsubscribe(
    { packetId, topicFilters, userProperties }: UnsubscribeIn,
    run: (job: Job, settle: (outcome: Outcome) => void) => void,
    faulted: () => void,
  ): void {
    run(this.job({ type: "Unsubscribe", packet: { packetId, topicFilters, userProperties } }), (outcome) => {
      if (outcome.kind === "disconnected") {
        this.admitted.connection.close("pipeline", { reason: outcome.reason, text: outcome.text });
      } else if (outcome.kind === "fault") {
        faulted();
      } else {
        this.guard(this.unbind(packetId, topicFilters, outcome.kind === "passed" ? undefined : reasonOf(outcome)));
      }
    });
  }

  private job(what: Pick<Job, "type" | "packet">): Job {
    this.lane ??= createLane();
    return { ...what, origin: "client", client: this.admitted.client, lane: this.lane };
  }

  /** One code per topic filter, in their order [MQTT-3.8.4-5]; in effect before the SUBACK leaves. */
  private async grant(packet: SubscribePacket, subscribe: SubscribeIn, refusal: Reason | undefined): Promise<void> {
    const { handle, connection } = this.admitted;
    const { meters, spec } = this.deps;
    const granted: string[] = [];
    const stored: Awaitable<{ readonly isNew: boolean }>[] = [];
    const answers: number[] = [];
    for (const [index, { topicFilter, qos, refused }] of packet.subscriptions.entries()) {
      const by = refused === true ? "notAuthorized" : refused === false ? undefined : refused;
      const why = this.problemOf(topicFilter, refusal ?? by);
      if (why) {
        meters.subscriptionRefused(why.counted);
        answers.push(this.isV5 ? reasonCodeFor("suback", why.reason) : refusedCode);
        continue;
      }
      const wanted = subscribe.subscriptions[index];
      const code = qos > spec.maxQos ? spec.maxQos : qos;
      granted.push(topicFilter);
      stored.push(
        handle.subscribe(topicFilter, {
          qos: code,
          noLocal: wanted?.noLocal ?? false,
          retainAsPublished: wanted?.retainAsPublished ?? false,
          retainHandling: wanted?.retainHandling ?? 0,
          identifier: subscribe.identifier,
        }),
      );
      answers.push(code);
    }
    // Begun all before one is waited for: a store that writes needs one write for them.
    const all = allOf(stored);
    const outcomes = all instanceof Promise ? await all : all;
    meters.sent("suback");
    connection.send((this.isV5 ? encodeSubackV5 : encodeSuback)(packet.packetId, answers));
    for (const [index, topicFilter] of granted.entries()) {
      const delivered = handle.deliverRetained(topicFilter, outcomes[index]?.isNew === true);
      if (delivered instanceof Promise) await delivered;
    }
  }

  private problemOf(topicFilter: string, refusal: Reason | undefined): Problem | undefined {
    const { subscriptions } = this.admitted.handle;
    if (refusal !== undefined) return { counted: "policy", reason: refusal };
    if (topicFilterProblem(topicFilter) !== undefined) return { counted: "invalid", reason: "topicFilterInvalid" };
    const isOneTooMany = subscriptions.size >= maxSubscriptions && !subscriptions.has(topicFilter);
    return isOneTooMany ? { counted: "tooMany", reason: "quotaExceeded" } : undefined;
  }

  /** 3.1.x knows no refusal of an UNSUBSCRIBE: a policy that forbids it keeps the subscription, and the UNSUBACK comes. */
  private async unbind(packetId: number, topicFilters: readonly string[], refusal: Reason | undefined): Promise<void> {
    const { handle, connection } = this.admitted;
    const stored = refusal === undefined ? topicFilters.map((topicFilter) => handle.unsubscribe(topicFilter)) : [];
    const all = allOf(stored);
    const outcomes = all instanceof Promise ? await all : all;
    const answers = topicFilters.map((_, index) => {
      if (refusal !== undefined) return reasonCodeFor("unsuback", refusal);
      return outcomes[index] === true ? 0 : codes.noSubscriptionExisted;
    });
    this.deps.meters.sent("unsuback");
    connection.send(this.isV5 ? encodeUnsubackV5(packetId, answers) : encodeAck("unsuback", packetId));
  }

  /** A store that fails must not end the process; the client that it failed is closed and comes again. */
  private guard(work: Promise<unknown>): void {
    work.catch((error: unknown) => {
      this.deps.storeFailed(this.admitted.client.id, error);
      this.admitted.connection.close("fault");
    });
  }
}

interface Problem {
  /** For the counter. */
  readonly counted: string;
  readonly reason: Reason;
}

/** The SUBACK code of a topic filter that is not granted, before MQTT 5 [MQTT-3.9.3-2]. */
const refusedCode = 0x80;

/** A filter that fails has not said that the client may not; so it may try again. */
function refusalOf(outcome: Outcome): Reason {
  return outcome.kind === "fault" ? "implementationSpecificError" : reasonOf(outcome);
}

/** Together: no promise where the store had every answer at once. */
function allOf<T>(answers: readonly Awaitable<T>[]): Awaitable<readonly T[]> {
  if (!answers.some((answer) => answer instanceof Promise)) return answers as readonly T[];
  return Promise.all(answers.map((answer) => Promise.resolve(answer)));
}
