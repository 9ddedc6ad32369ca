/**
 * PUBLISH packets that fault again and again: a client has to send again what got no ack, so one that no retry mends
 * comes for ever. Tells such packets from those that fault because something else is away; docs/adr/0028 says how.
 */
import { hash } from "node:crypto";
import { type Code, messageOf, SluiceError } from "./errors.ts";
import type { Outcome } from "./outcome.ts";
import type { DeadLetterSpec, ProxySpec } from "./spec.ts";

/** Under which filters of the dead-letter pipeline find a {@link DeadLetter} in `ctx.data`. */
export const deadLetterKey = "DEAD_LETTER";

/** Why a packet is a dead letter; all strings, so that a sink can write them as headers. */
export type DeadLetter = Readonly<
  Record<"error" | "errorReason" | "errorTopic" | "errorPipeline" | "errorFaults", string>
>;

export interface Poison {
  /** Of now; undefined = onPoison is `close`. */
  readonly deadLetter: DeadLetterSpec | undefined;
  /** A packet of QoS 1 or 2 faulted, which came like this. Once it has done so often enough: what to tell the dead-letter pipeline. */
  faulted(
    clientId: string,
    packet: { readonly packetId: number; readonly topic: string; readonly payload: Buffer },
    outcome: Outcome,
  ): DeadLetter | undefined;
  /** One of this client's packets passed, or is a dead letter. */
  passed(clientId: string, packetId: number): void;
}

export interface PoisonDeps {
  /** The options of now. */
  readonly spec: Pick<ProxySpec, "onPoison" | "deadLetter" | "rules">;
  /** The bound was reached: the packet that faulted longest ago is no longer known. */
  forgotten(): void;
}

interface Suspect {
  readonly digest: string;
  faults: number;
  /** Packets that had passed when it faulted last. */
  passes: number;
}

/** Of the kernel's own faults, those that the packet itself brings about. */
const ofPacket: ReadonlySet<Code> = new Set(["TOPIC_INVALID", "PROPERTIES_INVALID", "ISOLATION_NOT_CLONEABLE"]);
const maxReasonLength = 500;

export function createPoison(deps: PoisonDeps): Poison {
  /** By client and packet id, the one that faulted last at the end: a packet id stands for one message at a time. */
  const suspects = new Map<string, Suspect>();
  let passes = 0;

  function deadLetter(): DeadLetterSpec | undefined {
    const { spec } = deps;
    if (spec.onPoison === "deadLetter" && spec.deadLetter) return spec.deadLetter;
    if (suspects.size > 0) suspects.clear();
    return undefined;
  }

  return {
    get deadLetter() {
      return deadLetter();
    },
    faulted(clientId, { packetId, topic, payload }, outcome) {
      const letters = deadLetter();
      const blame = blameOf(outcome);
      // In an outage nothing is remembered, nor hashed.
      if (!letters || blame === "other") return undefined;
      const key = keyOf(clientId, packetId);
      const digest = hash("sha256", Buffer.concat([Buffer.from(`${topic}\0`), payload]), "base64");
      const known = suspects.get(key);
      const suspect = known?.digest === digest ? known : { digest, faults: 0, passes: -1 };
      if (blame === "packet" || passes > suspect.passes) suspect.faults++;
      suspect.passes = passes;
      suspects.delete(key);
      suspects.set(key, suspect);
      while (suspects.size > letters.maxTracked) {
        suspects.delete(suspects.keys().next().value ?? "");
        deps.forgotten();
      }
      return suspect.faults < letters.faults
        ? undefined
        : letterOf(outcome, topic, suspect.faults, deps.spec.rules.Publish ?? "");
    },
    passed(clientId, packetId) {
      passes++;
      if (packetId !== 0 && suspects.size > 0) suspects.delete(keyOf(clientId, packetId));
    },
  };
}

function keyOf(clientId: string, packetId: number): string {
  return `${packetId} ${clientId}`;
}

/** What a fault is about: this packet, something else (which is away, or full), or nobody knows. */
function blameOf(outcome: Outcome): "packet" | "other" | "unknown" {
  // A filter returns what a retry can't mend.
  if (outcome.kind === "unhandled") return "packet";
  if (outcome.kind !== "fault") return "other";
  const { error } = outcome;
  const poison = typeof error === "object" && error !== null && "poison" in error ? error.poison : undefined;
  if (typeof poison === "boolean") return poison ? "packet" : "other";
  if (!(error instanceof SluiceError) || error.code === "ISOLATION_LOST") return "unknown";
  return ofPacket.has(error.code) ? "packet" : "other";
}

function letterOf(outcome: Outcome, topic: string, faults: number, pipeline: string): DeadLetter {
  const { error, reason } = describe(outcome);
  return {
    error: toHeader(error),
    errorReason: toHeader(reason),
    errorTopic: topic,
    errorPipeline: pipeline,
    errorFaults: String(faults),
  };
}

function describe(outcome: Outcome): { error: string; reason: string } {
  if (outcome.kind === "unhandled") {
    return { error: outcome.result, reason: `the result ${outcome.result}, for which the flow has no jumpIf` };
  }
  const error = outcome.kind === "fault" ? outcome.error : undefined;
  const code = typeof error === "object" && error !== null && "code" in error ? error.code : undefined;
  return { error: typeof code === "string" ? code : "fault", reason: messageOf(error) ?? "undefined was thrown" };
}

/** As an MQTT 5 user property may be [MQTT-1.5.4-1] [MQTT-1.5.4-2]. */
function toHeader(text: string): string {
  return text.slice(0, maxReasonLength).toWellFormed().replaceAll("\0", " ");
}
