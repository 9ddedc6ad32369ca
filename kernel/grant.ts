/** What the subscriptions of one session that match a topic name come to: one delivery, whatever number of them match. */
import type { QoS, SubscriptionOptions } from "./plugin.ts";

export interface Grant {
  /** The highest of them [MQTT-3.3.4-2]. */
  readonly qos: QoS;
  readonly retainAsPublished: boolean;
  /** Of all of them that have one [MQTT-3.3.4-4]. */
  readonly identifiers: readonly number[];
  /** What is left of it for the session's own messages: the part without noLocal [MQTT-3.8.3-3]. */
  readonly own: Grant | undefined;
}

const none: readonly number[] = Object.freeze([]);

export function grantOf({ qos, noLocal, retainAsPublished, identifier }: SubscriptionOptions): Grant {
  const identifiers = identifier === 0 ? none : [identifier];
  const grant: { -readonly [K in keyof Grant]: Grant[K] } = { qos, retainAsPublished, identifiers, own: undefined };
  // Itself: the same object, so that a lookup costs nothing.
  if (!noLocal) grant.own = grant;
  return grant;
}

export function mergeGrants(a: Grant, b: Grant): Grant {
  const qos = a.qos > b.qos ? a.qos : b.qos;
  const retainAsPublished = a.retainAsPublished || b.retainAsPublished;
  const identifiers = b.identifiers.length === 0 ? a.identifiers : [...a.identifiers, ...b.identifiers];
  const merged: { -readonly [K in keyof Grant]: Grant[K] } = { qos, retainAsPublished, identifiers, own: undefined };
  if (a.own === a && b.own === b) merged.own = merged;
  else merged.own = a.own && b.own ? mergeGrants(a.own, b.own) : (a.own ?? b.own);
  return merged;
}
