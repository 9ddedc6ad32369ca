/** Tells a pipeline which clients come and go: a JSON message after each CONNACK, and one when that connection has ended. */
import type { CloseReason } from "./connection.ts";
import { createLane, type Job, type Lane } from "./pipeline.ts";
import type { Client } from "./plugin.ts";
import type { PresenceSpec } from "./spec.ts";

/** One connection, as its two messages tell of it. */
export interface Presence {
  readonly client: Client;
  /** Greater for each later connection, so that a "disconnected" which comes after the next "connected" can be told. */
  readonly connection: number;
  /** The two messages of a connection stay in their order. */
  readonly lane: Lane;
}

export interface PresenceDeps {
  /** The option of now; undefined = it is switched off. */
  readonly spec: PresenceSpec | undefined;
  /** Milliseconds since the epoch. */
  now(): number;
  /** Counts as under way until it has left its pipeline. */
  send(job: Job): void;
}

export interface PresenceTeller {
  /** @param ordinal where others number the connections */
  connected(client: Client, ordinal?: number): Presence;
  disconnected(presence: Presence, why: CloseReason): void;
}

export function createPresenceTeller(deps: PresenceDeps): PresenceTeller {
  let last = 0;

  function tell({ client, connection, lane }: Presence, event: object): void {
    const { spec } = deps;
    if (!spec) return;
    const payload = Buffer.from(
      JSON.stringify({
        ...event,
        clientId: client.id,
        username: client.username ?? null,
        address: client.address,
        protocolVersion: client.protocolVersion,
        connection,
        at: new Date(deps.now()).toISOString(),
      }),
    );
    const { topic, pipeline } = spec;
    const packet = { topic, payload, qos: 1, retain: false, dup: false, packetId: undefined } as const;
    deps.send({ type: "Publish", origin: "presence", packet: { ...packet }, client, lane, pipeline });
  }

  return {
    connected(client, ordinal) {
      // By the clock, so that it grows over a restart of the gateway too; there may be several a millisecond.
      last = ordinal ?? Math.max(last + 1, deps.now());
      const presence: Presence = { client, connection: last, lane: createLane() };
      tell(presence, { event: "connected" });
      return presence;
    },
    disconnected: (presence, why) => tell(presence, { event: "disconnected", reason: why }),
  };
}
