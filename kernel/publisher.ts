/** A client as publisher: its PUBLISH packets through the pipeline, each acknowledged once what it asks for is done. */
import { isUtf8 } from "node:buffer";
import type { Admitted, PeerDeps } from "./admitted.ts";
import { encodeAck, shortAck } from "./encoder.ts";
import type { Work } from "./connection.ts";
import { filteredMessage } from "./filtered-message.ts";
import { createLimiter, type Limiter } from "./limiter.ts";
import { nameOf, type Outcome } from "./outcome.ts";
import type { AckIn, PublishIn } from "./packet.ts";
import { createLane, type Job, type Lane } from "./pipeline.ts";
import type { PublishOutcome, PublishPacket } from "./plugin.ts";
import { type DeadLetter, deadLetterKey } from "./poison.ts";
import { ackCodeOf, encodePublishAck } from "./publish-ack.ts";
import { codes, firstError } from "./reasons.ts";
import { retainAvailable } from "./spec.ts";
import { createTopicAliasesIn, type TopicAliasesIn } from "./topic-aliases.ts";
import { sysPrefix } from "./sys-topics.ts";

/** A PUBLISH on its way: one object for the connection, the pipeline and what comes behind. */
interface Under extends Work, Job {
  readonly packet: PublishPacket;
  readonly publisher: Publisher;
  readonly qos: PublishIn["qos"];
  /** As the client sent them: what a filter leaves instead is judged. */
  readonly topic: string;
  readonly payload: Buffer;
  readonly properties: PublishPacket["properties"];
  /** Of brokerMode's fan-out; -1 = there was none, or not all are counted. */
  matched: number;
  /** Of a QoS 2 message: whoever joined this run hears of its outcome. */
  done: ((outcome: Outcome) => void) | undefined;
}

const wrongFormat: Outcome = {
  kind: "rejected",
  reason: "payloadFormatInvalid",
  text: "the payload is not UTF-8, as its payload format indicator says",
};

/** A class because there are as many as clients. */
export class Publisher {
  private readonly admitted: Admitted;
  private readonly deps: PeerDeps;
  private readonly isV5: boolean;
  private readonly lane: Lane = createLane();
  /** Of the dead-letter pipeline. */
  private deadLane: Lane | undefined;
  private limiter: Limiter | undefined;
  private aliases: TopicAliasesIn | undefined;
  /** MQTT 5: ids of QoS 1 and 2 that have not been acknowledged whole; bounded by the receive maximum. */
  private open: Set<number> | undefined;
  /** QoS 2 ids whose outcome is waited for, on this connection. */
  private pending: Set<number> | undefined;
  private faultTimer: NodeJS.Timeout | undefined;

  constructor(admitted: Admitted, deps: PeerDeps) {
    this.admitted = admitted;
    this.deps = deps;
    this.isV5 = admitted.connect.protocolVersion === 5;
    this.limit();
  }

  /** `clientPublishLimit` is new, or has changed. */
  limit(): void {
    const { clientPublishLimit } = this.deps.spec;
    this.limiter = clientPublishLimit && createLimiter(clientPublishLimit, () => this.deps.now());
  }

  close(): void {
    clearTimeout(this.faultTimer);
  }

  publish(publish: PublishIn): void {
    const { connection } = this.admitted;
    const { meters } = this.deps;
    if (!this.isAllowed(publish)) return;
    if (this.limiter && !this.limiter.admit(publish.bytes)) {
      meters.delayed();
      connection.defer(publish, this.limiter.waitMs());
      return;
    }
    const { qos, packetId = 0 } = publish;
    if (qos === 2 && this.isRepeat(publish, packetId)) return;
    meters.messageIn();
    const under = this.begin(publish);
    if (qos === 2) {
      this.pending ??= new Set();
      this.pending.add(packetId);
      under.done = this.deps.inboundWork.begin(this.admitted.client.id, packetId);
    }
    if (this.deps.spec.checkPayloadFormat && publish.properties?.payloadFormat === 1 && !isUtf8(publish.payload)) {
      this.ended(under, wrongFormat);
      return;
    }
    const outcome = this.deps.run(under, settled);
    if (outcome) this.settle(under, outcome);
  }

  /** PUBREL: the id is free again [MQTT-4.3.3-11]. */
  release({ packetId }: AckIn): void | Promise<void> {
    const { inbound } = this.admitted.handle;
    const known = inbound.has(packetId);
    const go = (): void => {
      this.open?.delete(packetId);
      this.deps.meters.sent("pubcomp");
      const code = known || !this.isV5 ? 0 : codes.packetIdentifierNotFound;
      this.admitted.connection.send(encodeAck("pubcomp", packetId, code));
    };
    const freed = known ? inbound.delete(packetId) : undefined;
    return freed instanceof Promise ? freed.then(go) : go();
  }

  /** A will's run through the Publish pipeline, and in brokerMode the fan-out behind it. */
  will(packet: PublishPacket): Job {
    const { topic, properties } = packet;
    const { spec, store } = this.deps;
    const final = spec.brokerMode ? () => this.fanOut(packet, topic, properties, undefined) : undefined;
    const { client } = this.admitted;
    return {
      type: "Publish",
      origin: "will",
      packet,
      client,
      lane: this.lane,
      final,
      finalKeepsOrder: store.keepsOrder,
    };
  }

  private begin({ topic, payload, qos, retain, dup, packetId, properties, bytes }: PublishIn): Under {
    const under: Under = {
      type: "Publish",
      origin: "client",
      packet: { topic, payload, qos, retain, dup, packetId, properties },
      client: this.admitted.client,
      lane: this.lane,
      final: this.deps.spec.brokerMode ? fanOut : undefined,
      finalKeepsOrder: this.deps.store.keepsOrder,
      publisher: this,
      packetId: packetId ?? 0,
      qos,
      topic,
      payload,
      properties,
      bytes,
      state: "pending",
      ack: undefined,
      matched: -1,
      done: undefined,
    };
    this.admitted.connection.begin(under);
    return under;
  }

  /** What the server has said that it does not take closes the connection. */
  private isAllowed(publish: PublishIn): boolean {
    const { connection, topicAliasMaximum, receiveMaximum } = this.admitted;
    const { spec } = this.deps;
    const { topicAlias, qos, packetId } = publish;
    if (topicAlias !== 0) {
      if (topicAlias > topicAliasMaximum) {
        connection.close("protocolError", { reason: "topicAliasInvalid" }); // [MQTT-3.3.2-9]
        return false;
      }
      this.aliases ??= createTopicAliasesIn();
      const topic = this.aliases.resolve(publish.topic, topicAlias);
      if (topic === undefined) {
        connection.close("protocolError", { reason: "protocolError", text: "a topic alias that has no topic yet" });
        return false;
      }
      publish.topic = topic;
    }
    if (qos > spec.maxQos) {
      connection.close("protocolError", { reason: "qosNotSupported" }); // [MQTT-3.2.2-11]
      return false;
    }
    if (!this.isV5) return true;
    if (publish.retain && !retainAvailable(spec)) {
      connection.close("protocolError", { reason: "retainNotSupported" }); // [MQTT-3.2.2-14]
      return false;
    }
    if (packetId !== undefined) {
      this.open ??= new Set();
      this.open.add(packetId);
      if (this.open.size > receiveMaximum) {
        connection.close("protocolError", { reason: "receiveMaximumExceeded" }); // [MQTT-3.3.4-7]
        return false;
      }
    }
    return true;
  }

  /** QoS 2: has this message come before? Then it is answered as that was, and not handled again [MQTT-4.3.3-10]. */
  private isRepeat(publish: PublishIn, packetId: number): boolean {
    const { connection, client, handle } = this.admitted;
    const { meters, inboundWork } = this.deps;
    if (this.pending?.has(packetId)) {
      // The one under way will be answered.
      meters.repeated();
      return true;
    }
    if (handle.inbound.has(packetId)) {
      meters.repeated();
      meters.sent("pubrec");
      connection.finish(this.begin(publish), shortAck("pubrec", packetId));
      return true;
    }
    let under: Under | undefined;
    const joined = inboundWork.join(client.id, packetId, (outcome) => {
      if (under) this.ended(under, outcome);
    });
    if (!joined) return false;
    meters.repeated();
    under = this.begin(publish);
    this.pending ??= new Set();
    this.pending.add(packetId);
    return true;
  }

  /** brokerMode: what the pipeline left of the message goes to the subscribers. */
  fanOut(
    packet: PublishPacket,
    topicBefore: string,
    propertiesBefore: PublishPacket["properties"],
    under: Under | undefined,
  ): void | Promise<unknown> {
    // What the proxy says of itself nobody says in its place.
    if (this.deps.spec.sysInterval > 0 && packet.topic.startsWith(sysPrefix)) {
      this.deps.meters.dropped("sys_topic");
      return;
    }
    const message = filteredMessage(packet, topicBefore, propertiesBefore);
    const { client, handle } = this.admitted;
    const inbound = under?.qos === 2 ? { handle, packetId: under.packetId } : undefined;
    const stored = this.deps.store.publish(message, { from: client.id, inbound });
    if (stored instanceof Promise) return this.noteLater(stored, under);
    if (under) noteMatched(stored, under);
  }

  private async noteLater(stored: Promise<PublishOutcome>, under: Under | undefined): Promise<void> {
    const outcome = await stored;
    if (under) noteMatched(outcome, under);
  }

  /** The pipeline has ended: that is that, unless the packet is poison. */
  settle(under: Under, outcome: Outcome): void {
    const { poison } = this.deps;
    if (!poison.deadLetter) {
      this.ended(under, outcome);
      return;
    }
    const { id } = this.admitted.client;
    if (outcome.kind === "passed") {
      poison.passed(id, under.packetId);
    } else if (under.qos > 0 && this.codeOf(outcome, under) === undefined) {
      const letter = poison.faulted(id, under, outcome);
      if (letter) {
        this.bury(under, outcome, letter, poison.deadLetter.pipeline);
        return;
      }
    }
    this.ended(under, outcome);
  }

  /** No retry mends it: the dead-letter pipeline gets it as it came, and it is acknowledged if that has it. */
  private bury(under: Under, fault: Outcome, letter: DeadLetter, pipeline: string): void {
    const { client } = this.admitted;
    const { topic, payload, qos, packetId, properties } = under;
    const { retain, dup } = under.packet;
    const userProperties = [...(properties?.userProperties ?? []), ...Object.entries(letter)];
    this.deadLane ??= createLane();
    const job: Job = {
      type: "Publish",
      origin: "client",
      packet: { topic, payload, qos, retain, dup, packetId, properties: { ...properties, userProperties } },
      client,
      lane: this.deadLane,
      pipeline,
      data: [[deadLetterKey, letter]],
    };
    const settleBurial = (outcome: Outcome): void => {
      const isBuried = outcome.kind === "passed";
      this.deps.buried(client.id, letter, isBuried ? undefined : outcome);
      if (isBuried) {
        this.deps.meters.deadLettered(nameOf(fault));
        this.deps.poison.passed(client.id, packetId);
      }
      this.ended(under, isBuried ? outcome : fault);
    };
    const outcome = this.deps.run(job, settleBurial);
    if (outcome) settleBurial(outcome);
  }

  ended(under: Under, outcome: Outcome): void {
    const { packetId, qos, done } = under;
    const { connection, handle } = this.admitted;
    const { meters } = this.deps;
    const code = qos === 0 ? undefined : this.codeOf(outcome, under);
    // Nobody sends it again.
    if (outcome.kind !== "passed" && (qos === 0 || code !== undefined)) meters.dropped(nameOf(outcome));
    if (qos === 0) {
      connection.finish(under, undefined);
    } else if (code === undefined) {
      this.withhold(under, nameOf(outcome));
    } else if (qos === 1 || code >= firstError || handle.inbound.has(packetId)) {
      this.acknowledge(under, code, outcome);
    } else {
      // In effect before the PUBREC leaves: from there on the client counts on it.
      const added = handle.inbound.add(packetId);
      if (added instanceof Promise) {
        void this.acknowledgeOnce(added, under, code, outcome);
        return;
      }
      this.acknowledge(under, code, outcome);
    }
    done?.(outcome);
    if (outcome.kind === "disconnected") {
      connection.close("pipeline", { reason: outcome.reason, text: outcome.text });
    }
  }

  private async acknowledgeOnce(added: Promise<void>, under: Under, code: number, outcome: Outcome): Promise<void> {
    try {
      await added;
      this.acknowledge(under, code, outcome);
    } catch (error) {
      this.deps.storeFailed(this.admitted.client.id, error);
      this.withhold(under, "fault");
    }
    under.done?.(outcome);
  }

  private codeOf(outcome: Outcome, { matched }: Under): number | undefined {
    return ackCodeOf(outcome, matched, this.isV5, this.deps.spec.v5FaultAck);
  }

  private acknowledge(under: Under, code: number, outcome: Outcome): void {
    const { packetId, qos } = under;
    const { connection, connect } = this.admitted;
    const cmd = qos === 1 ? "puback" : "pubrec";
    this.pending?.delete(packetId);
    if (qos === 1 || code >= firstError) this.open?.delete(packetId);
    this.deps.meters.sent(cmd);
    const wantsReasons = connect.properties?.requestProblemInformation === true;
    connection.finish(
      under,
      encodePublishAck(cmd, packetId, code, outcome, wantsReasons, connection.maximumPacketSize),
    );
  }

  /** No ack: the client has to send again, which it does on a new connection [MQTT-4.4.0-1]. */
  private withhold(under: Under, why: string): void {
    const { connection } = this.admitted;
    this.pending?.delete(under.packetId);
    this.deps.meters.withheld(why);
    connection.finish(under, undefined);
    if (why !== "disconnected") this.giveGrace();
  }

  /** Other acks may still leave, then the connection is closed so that the client sends again. */
  giveGrace(): void {
    const { connection } = this.admitted;
    if (connection.closed) return;
    this.faultTimer ??= setTimeout(() => connection.close("fault"), this.deps.spec.faultGraceMs);
  }
}

/** Of all publishers, so that a PUBLISH costs no function of its own. */
function settled(outcome: Outcome, under: Under): void {
  under.publisher.settle(under, outcome);
}

/** "No matching subscribers" is for who knows that there are none (MQTT 5, 3.4.2.1): in a cluster nobody does. */
function noteMatched({ matched, uncounted }: PublishOutcome, under: Under): void {
  under.matched = uncounted ? -1 : matched;
}

function fanOut(job: Job): void | Promise<unknown> {
  const under = job as Under;
  return under.publisher.fanOut(under.packet, under.topic, under.properties, under);
}
