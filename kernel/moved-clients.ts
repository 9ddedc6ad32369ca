/** Tells workers of clients that have something with them and are, or go on, elsewhere. */
import type { Link, Shared } from "./store-parties.ts";
import { tell } from "./store-wire.ts";

/** @param what 0: back with another session, 1: back with the same, 2: the session has ended */
export function tellBack(proxy: Shared, clientId: string, from: Link | undefined, what: 0 | 1 | 2): void {
  if (what === 2) proxy.lastWords.ended(clientId);
  else proxy.lastWords.back(clientId, what === 1);
  for (const link of proxy.whereabouts.of(clientId)) {
    if (link === from) continue;
    proxy.whereabouts.willWaits(link, clientId, false);
    if (what !== 1) proxy.whereabouts.forgetWorks(link, clientId);
    link.post(tell.back, () => {
      link.channel.out.number(link.numberOf(proxy) ?? 0);
      link.channel.out.text(clientId);
      link.channel.out.byte(what);
    });
  }
}

/** A client of this worker has a will that waits, or has none any more. */
export function noteWill(link: Link, proxy: Shared, clientId: string, waits: boolean): void {
  proxy.whereabouts.willWaits(link, clientId, waits);
  const current = proxy.holders.get(clientId);
  // It has come back before its old connection was noticed to be gone.
  if (waits && current?.handle && current.link !== link) {
    tellBack(proxy, clientId, current.link, current.handle.present ? 1 : 0);
  }
}

/** A QoS 2 message of this worker has come out of its pipeline: whoever has its client now is told. */
export function passOnWork(link: Link, proxy: Shared, clientId: string, packetId: number, outcome: string): void {
  proxy.whereabouts.workEnded(link, clientId, packetId);
  const current = proxy.holders.get(clientId)?.link;
  if (!current || current === link) return;
  current.post(tell.workEnded, () => {
    current.channel.out.number(current.numberOf(proxy) ?? 0);
    current.channel.out.text(clientId);
    current.channel.out.number(packetId);
    current.channel.out.text(outcome);
  });
}
