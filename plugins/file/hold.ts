/**
 * A client sends a packet that got no acknowledgement again, on its next connection. What it sends on this one has to come
 * behind that, so it is not taken either, until the kernel closes the connection because of the fault.
 */
import type { Client, Clock, FilterContext } from "@sluice/kernel";

/** Milliseconds, in case the connection is not closed. */
const holdMs = 10_000;
const key = "@sluice/file/failed-at";

/** A packet of the client was not written. */
export function beginHold({ data }: Client, clock: Clock): void {
  if (!data.has(key)) data.set(key, clock.now());
}

export function isHeld({ data }: Client, clock: Clock): boolean {
  const since = data.get(key);
  return typeof since === "number" && clock.now() - since < holdMs;
}

/** The client that keeps the packet until it is acknowledged; undefined where none does. */
export function keeperOf(ctx: FilterContext): Client | undefined {
  return ctx.type === "Publish" && ctx.packet.qos > 0 && ctx.origin === "client" ? ctx.client : undefined;
}
