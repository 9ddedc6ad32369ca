/** A client as publisher: its PUBLISH packets through the pipeline, each acknowledged once what it asks for is done. */
import { isUtf8 } from "node:buffer";
import type { Admitted, PeerDeps } from "./admitted.ts";
import { encodeAck } from "./encoder.ts";
import type { Work } from "./connection.ts";
import { SluiceError } from "./errors.ts";
import { createLimiter, type Limiter } from "./limiter.ts";
import { isFinal, nameOf, type Outcome, textOf } from "./outcome.ts";
import type { AckIn, PublishIn } from "./packet.ts";
import { createLane, type Job, type Lane } from "./pipeline.ts";
import type { PublishOutcome, PublishPacket } from "./plugin.ts";
import { type DeadLetter, deadLetterKey } from "./poison.ts";
import { propertiesProblem } from "./properties.ts";
import { codes, firstError, reasonCodeFor, reasonCodes } from "./reasons.ts";
import { retainAvailable } from "./spec.ts";
import { createTopicAliasesIn, type TopicAliasesIn } from "./topic-aliases.ts";
import { sysPrefix } from "./sys-topics.ts";
import { topicNameProblem } from "./topics.ts";

/** A PUBLISH on its way. */
interface Under {
  readonly packetId: number;
  readonly qos: PublishIn["qos"];
  readonly work: Work;
  /** Of brokerMode's fan-out; -1 = there was none. */
  matched: number;
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
    const { qos, bytes, packetId = 0 } = publish;
    if (qos === 2 && this.isRepeat(packetId, bytes)) return;
    meters.messageIn();
    const under: Under = { packetId, qos, work: connection.begin(packetId, bytes), matched: -1 };
    if (qos < 2) {
      this.handle(publish, under, (outcome) => this.settled(publish, under, outcome));
      return;
    }
    this.pending ??= new Set();
    this.pending.add(packetId);
    const done = this.deps.inboundWork.begin(this.admitted.client.id, packetId);
    this.handle(publish, under, (outcome) => this.settled(publish, under, outcome, done));
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

  /** A run through the Publish pipeline, and in brokerMode the fan-out behind it. @param under of a client's PUBLISH */
  job(packet: PublishPacket, origin: "client" | "will", under?: Under): Job {
    const { topic, properties } = packet;
    const final = this.deps.spec.brokerMode ? () => this.fanOut(packet, { topic, properties }, under) : undefined;
    return { type: "Publish", origin, packet, client: this.admitted.client, lane: this.lane, final };
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
  private isRepeat(packetId: number, bytes: number): boolean {
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
      connection.finish(connection.begin(packetId, bytes), encodeAck("pubrec", packetId));
      return true;
    }
    let under: Under | undefined;
    const joined = inboundWork.join(client.id, packetId, (outcome) => {
      if (under) this.ended(under, outcome);
    });
    if (!joined) return false;
    meters.repeated();
    under = { packetId, qos: 2, work: connection.begin(packetId, bytes), matched: -1 };
    this.pending ??= new Set();
    this.pending.add(packetId);
    return true;
  }

  private handle(publish: PublishIn, under: Under, settle: (outcome: Outcome) => void): void {
    const { topic, payload, qos, retain, dup, packetId, properties } = publish;
    if (this.deps.spec.checkPayloadFormat && properties?.payloadFormat === 1 && !isUtf8(payload)) {
      settle(wrongFormat);
      return;
    }
    const job = this.job({ topic, payload, qos, retain, dup, packetId, properties }, "client", under);
    const outcome = this.deps.run(job, settle);
    if (outcome) settle(outcome);
  }

  /** @param done of a QoS 2 message, as for `ended` */
  private settled(publish: PublishIn, under: Under, outcome: Outcome, done?: (outcome: Outcome) => void): void {
    const { poison } = this.deps;
    const { deadLetter } = poison;
    if (deadLetter) {
      const { id } = this.admitted.client;
      if (outcome.kind === "passed") {
        poison.passed(id, under.packetId);
      } else if (under.qos > 0 && this.codeOf(outcome, under) === undefined) {
        const letter = poison.faulted(id, publish, outcome);
        if (letter) {
          this.bury(publish, under, outcome, { letter, pipeline: deadLetter.pipeline, done });
          return;
        }
      }
    }
    this.ended(under, outcome, done);
  }

  /** No retry mends it: the dead-letter pipeline gets it as it came, and it is acknowledged if that has it. */
  private bury(
    publish: PublishIn,
    under: Under,
    fault: Outcome,
    o: { letter: DeadLetter; pipeline: string; done: ((outcome: Outcome) => void) | undefined },
  ): void {
    const { client } = this.admitted;
    const { letter, pipeline, done } = o;
    const { topic, payload, qos, retain, dup, packetId, properties } = publish;
    const userProperties = [...(properties?.userProperties ?? []), ...Object.entries(letter)];
    const packet = { topic, payload, qos, retain, dup, packetId, properties: { ...properties, userProperties } };
    const data = [[deadLetterKey, letter]] as const;
    this.deadLane ??= createLane();
    const job: Job = { type: "Publish", origin: "client", packet, client, lane: this.deadLane, pipeline, data };
    const settle = (outcome: Outcome): void => {
      const isBuried = outcome.kind === "passed";
      this.deps.buried(client.id, letter, isBuried ? undefined : outcome);
      if (isBuried) {
        this.deps.meters.deadLettered(nameOf(fault));
        this.deps.poison.passed(client.id, under.packetId);
      }
      this.ended(under, isBuried ? outcome : fault, done);
    };
    const outcome = this.deps.run(job, settle);
    if (outcome) settle(outcome);
  }

  /** brokerMode: what the pipeline left of the message goes to the subscribers. */
  private fanOut(
    packet: PublishPacket,
    original: Pick<PublishPacket, "topic" | "properties">,
    under: Under | undefined,
  ): void | Promise<unknown> {
    const { topic, payload, qos, retain, properties } = packet;
    // What the proxy says of itself nobody says in its place.
    if (this.deps.spec.sysInterval > 0 && topic.startsWith(sysPrefix)) {
      this.deps.meters.dropped("sys_topic");
      return;
    }
    const invalid = topic === original.topic ? undefined : topicNameProblem(topic);
    if (invalid) throw new SluiceError("TOPIC_INVALID", `a filter left a topic that is not valid: ${invalid}`);
    const unfit = properties && properties !== original.properties ? propertiesProblem(properties) : undefined;
    if (unfit) throw new SluiceError("PROPERTIES_INVALID", `a filter left properties that can't be sent: ${unfit}`);
    const { client, handle } = this.admitted;
    const inbound = under?.qos === 2 ? { handle, packetId: under.packetId } : undefined;
    const message = { topic, payload, qos, retain, properties };
    const stored = this.deps.store.publish(message, { from: client.id, inbound });
    if (stored instanceof Promise) return this.noteMatched(stored, under);
    if (under) under.matched = stored.matched;
  }

  private async noteMatched(stored: Promise<PublishOutcome>, under: Under | undefined): Promise<void> {
    const { matched } = await stored;
    if (under) under.matched = matched;
  }

  /** @param done of a QoS 2 message: whoever joined this run hears of its outcome */
  private ended(under: Under, outcome: Outcome, done?: (outcome: Outcome) => void): void {
    const { packetId, qos, work } = under;
    const { connection, handle } = this.admitted;
    const { meters } = this.deps;
    const code = qos === 0 ? undefined : this.codeOf(outcome, under);
    // Nobody sends it again.
    if (outcome.kind !== "passed" && (qos === 0 || code !== undefined)) meters.dropped(nameOf(outcome));
    if (qos === 0) {
      connection.finish(work, undefined);
    } else if (code === undefined) {
      this.withhold(under, nameOf(outcome));
    } else if (qos === 1 || code >= firstError || handle.inbound.has(packetId)) {
      this.acknowledge(under, code, outcome);
    } else {
      // In effect before the PUBREC leaves: from there on the client counts on it.
      const added = handle.inbound.add(packetId);
      if (added instanceof Promise) {
        void this.acknowledgeOnce(added, under, code, outcome, done);
        return;
      }
      this.acknowledge(under, code, outcome);
    }
    done?.(outcome);
    if (outcome.kind === "disconnected") {
      connection.close("pipeline", { reason: outcome.reason, text: outcome.text });
    }
  }

  private async acknowledgeOnce(
    added: Promise<void>,
    under: Under,
    code: number,
    outcome: Outcome,
    done: ((outcome: Outcome) => void) | undefined,
  ): Promise<void> {
    try {
      await added;
      this.acknowledge(under, code, outcome);
    } catch (error) {
      this.deps.storeFailed(this.admitted.client.id, error);
      this.withhold(under, "fault");
    }
    done?.(outcome);
  }

  /** The ack's reason code, 0 before MQTT 5; undefined = no ack. */
  private codeOf(outcome: Outcome, { matched }: Under): number | undefined {
    if (!isFinal(outcome)) {
      const isTold = this.isV5 && outcome.kind !== "disconnected" && this.deps.spec.v5FaultAck === "reasonCode";
      return isTold ? reasonCodes.implementationSpecificError : undefined;
    }
    if (!this.isV5) return 0;
    switch (outcome.kind) {
      case "passed":
        return matched === 0 ? codes.noMatchingSubscribers : 0;
      case "rejected":
        return reasonCodeFor("puback", outcome.reason);
      case "unhandled":
        return reasonCodes.implementationSpecificError;
      default:
        return 0;
    }
  }

  private acknowledge({ packetId, qos, work }: Under, code: number, outcome: Outcome): void {
    const { connection, connect } = this.admitted;
    const cmd = qos === 1 ? "puback" : "pubrec";
    this.pending?.delete(packetId);
    if (qos === 1 || code >= firstError) this.open?.delete(packetId);
    this.deps.meters.sent(cmd);
    const text = outcome.kind === "unhandled" ? outcome.result : textOf(outcome);
    // [MQTT-3.1.2-29]
    const isWanted = code >= firstError && connect.properties?.requestProblemInformation === true;
    let ack = encodeAck(cmd, packetId, code, isWanted ? text : undefined);
    if (ack.length > connection.maximumPacketSize) ack = encodeAck(cmd, packetId, code);
    connection.finish(work, ack);
  }

  /** No ack: the client has to send again, which it does on a new connection [MQTT-4.4.0-1]. */
  private withhold({ packetId, work }: Under, why: string): void {
    const { connection } = this.admitted;
    this.pending?.delete(packetId);
    this.deps.meters.withheld(why);
    connection.finish(work, undefined);
    if (why !== "disconnected") this.giveGrace();
  }

  /** Other acks may still leave, then the connection is closed so that the client sends again. */
  giveGrace(): void {
    const { connection } = this.admitted;
    if (connection.closed) return;
    this.faultTimer ??= setTimeout(() => connection.close("fault"), this.deps.spec.faultGraceMs);
  }
}
