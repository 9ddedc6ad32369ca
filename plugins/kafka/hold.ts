/**
 * A client sends a packet that got no acknowledgement again, on its next connection. What it sends on this one has to come
 * behind that, so it is not taken either, until the kernel closes the connection because of the fault.
 */
import type { Client, Clock, FilterContext } from "@sluice/kernel";

/** Milliseconds, in case the connection is not closed. */
const holdMs = 10_000;
const key = "@sluice/kafka/failed-at";

export interface Hold {
  /** A packet of the client was not taken. */
  begin(client: Client | undefined): void;
  isHeld(client: Client): boolean;
}

export function createHold(clock: Clock): Hold {
  return {
    begin(client) {
      if (client && !client.data.has(key)) client.data.set(key, clock.now());
    },
    isHeld({ data }) {
      const since = data.get(key);
      return typeof since === "number" && clock.now() - since < holdMs;
    },
  };
}

/** The client that keeps the packet until it is acknowledged; undefined where none does. */
export function keeperOf(ctx: FilterContext): Client | undefined {
  return ctx.type === "Publish" && ctx.packet.qos > 0 && ctx.origin === "client" ? ctx.client : undefined;
}
