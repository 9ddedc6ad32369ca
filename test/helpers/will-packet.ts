import type { IConnectPacket } from "mqtt-packet";

/** What a CONNECT with a session that stays, and a will of QoS 1 that waits for its delay, has of its own. */
export function withWill(topic: string, delaySec = 0): Partial<IConnectPacket> {
  return {
    clean: false,
    properties: { sessionExpiryInterval: 600 },
    will: {
      topic,
      payload: Buffer.from("gone"),
      qos: 1,
      retain: false,
      properties: { willDelayInterval: delaySec, userProperties: { of: topic } },
    },
  };
}
