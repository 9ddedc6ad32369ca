/** MQTT 5's reason codes (section 2.4): their names, and which packet may carry which. */
import type { Reason } from "./plugin.ts";

/** What a filter may name, with its code. */
export const reasonCodes: Readonly<Record<Reason, number>> = {
  unspecifiedError: 0x80,
  malformedPacket: 0x81,
  protocolError: 0x82,
  implementationSpecificError: 0x83,
  unsupportedProtocolVersion: 0x84,
  clientIdentifierNotValid: 0x85,
  badUserNameOrPassword: 0x86,
  notAuthorized: 0x87,
  serverUnavailable: 0x88,
  serverBusy: 0x89,
  banned: 0x8a,
  serverShuttingDown: 0x8b,
  badAuthenticationMethod: 0x8c,
  keepAliveTimeout: 0x8d,
  sessionTakenOver: 0x8e,
  topicFilterInvalid: 0x8f,
  topicNameInvalid: 0x90,
  packetIdentifierInUse: 0x91,
  receiveMaximumExceeded: 0x93,
  topicAliasInvalid: 0x94,
  packetTooLarge: 0x95,
  messageRateTooHigh: 0x96,
  quotaExceeded: 0x97,
  administrativeAction: 0x98,
  payloadFormatInvalid: 0x99,
  retainNotSupported: 0x9a,
  qosNotSupported: 0x9b,
  useAnotherServer: 0x9c,
  serverMoved: 0x9d,
  sharedSubscriptionsNotSupported: 0x9e,
  connectionRateExceeded: 0x9f,
  maximumConnectTime: 0xa0,
  subscriptionIdentifiersNotSupported: 0xa1,
  wildcardSubscriptionsNotSupported: 0xa2,
};

/** Codes that are not errors, or that no filter gives. */
export const codes = {
  success: 0x00,
  disconnectWithWill: 0x04,
  noMatchingSubscribers: 0x10,
  noSubscriptionExisted: 0x11,
  continueAuthentication: 0x18,
  reAuthenticate: 0x19,
  packetIdentifierNotFound: 0x92,
} as const;

/** From this one on a code says that something failed. */
export const firstError = 0x80;

/** The codes that each packet of the server may carry [MQTT-3.2.2-8] [MQTT-3.4.2-1] [MQTT-3.5.2-1] [MQTT-3.9.3-2] [MQTT-3.11.3-2] [MQTT-3.14.2-1]. */
const carried = {
  connack: new Set([
    0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8c, 0x90, 0x95, 0x97, 0x99, 0x9a, 0x9b, 0x9c,
    0x9d, 0x9f,
  ]),
  // PUBREC has the same ones.
  puback: new Set([0x80, 0x83, 0x87, 0x90, 0x97, 0x99]),
  suback: new Set([0x80, 0x83, 0x87, 0x8f, 0x97, 0x9e, 0xa1, 0xa2]),
  unsuback: new Set([0x80, 0x83, 0x87, 0x8f]),
  disconnect: new Set([
    0x80, 0x81, 0x82, 0x83, 0x87, 0x89, 0x8b, 0x8d, 0x8e, 0x8f, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a,
    0x9b, 0x9c, 0x9d, 0x9e, 0x9f, 0xa0, 0xa1, 0xa2,
  ]),
} as const;

/** What a reason becomes in a packet that has no code for it. */
const nearest: Partial<Record<Reason, readonly Reason[]>> = {
  badUserNameOrPassword: ["notAuthorized"],
  banned: ["notAuthorized"],
  connectionRateExceeded: ["quotaExceeded"],
  messageRateTooHigh: ["quotaExceeded"],
  packetTooLarge: ["quotaExceeded"],
  receiveMaximumExceeded: ["quotaExceeded"],
  serverBusy: ["quotaExceeded"],
  serverUnavailable: ["implementationSpecificError"],
  serverShuttingDown: ["serverUnavailable", "implementationSpecificError"],
  topicFilterInvalid: ["topicNameInvalid"],
  topicNameInvalid: ["topicFilterInvalid"],
};

/** The code for `reason` in that packet: its own, that of the nearest which the packet has, or "unspecified error". */
export function reasonCodeFor(packet: keyof typeof carried, reason: Reason): number {
  const allowed = carried[packet];
  for (const name of [reason, ...(nearest[reason] ?? [])]) {
    if (allowed.has(reasonCodes[name])) return reasonCodes[name];
  }
  return reasonCodes.unspecifiedError;
}

const noIds = new Set([0x00, 0x92]);
const received = new Set([0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99]);

/** The codes that each packet of a client may carry. */
export const fromClient = {
  puback: received,
  pubrec: received,
  pubrel: noIds,
  pubcomp: noIds,
  disconnect: new Set([0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99]),
  auth: new Set([0x18, 0x19]),
} as const;
