/** What a worker that ends leaves undone for its clients: wills, news that they are gone, QoS 2 messages on their way to be safe. */
import { passOnWork } from "./moved-clients.ts";
import type { Awaitable } from "./store.ts";
import type { Holder, Link } from "./store-parties.ts";

/** Where its worker ends before it is safe, the client's next one is told what became of it. */
export function making<T>(holder: Holder | undefined, packetId: number, work: Awaitable<T>): Awaitable<T> {
  if (!holder || !(work instanceof Promise)) return work;
  const { writing } = holder;
  writing.set(packetId, work);
  const made = (): void => {
    if (writing.get(packetId) === work) writing.delete(packetId);
  };
  work.then(made, made);
  return work;
}

/** The client is told, wherever it is by then. */
export function leaveWriting(link: Link, { proxy, clientId, writing }: Holder): void {
  proxy.whereabouts.works(link, clientId, [...writing.keys()]);
  for (const [packetId, work] of writing) {
    const passOn = (outcome: object): void => passOnWork(link, proxy, clientId, packetId, JSON.stringify(outcome));
    work.then(
      () => passOn({ kind: "passed" }),
      () => passOn({ kind: "fault", error: "it could not be stored" }),
    );
  }
}

/** What its worker would have said. */
export function leaveWords(holder: Holder, wasConnected: boolean): void {
  const { proxy, client, will, ordinal, handle } = holder;
  if (!handle) return;
  const done = will && ((): void => handle.willDone?.());
  const connection = wasConnected && proxy.served.hasPresence ? ordinal : undefined;
  let delaySec = will ? delayOf(holder, will.delaySec) : 0;
  let due = will;
  const current = proxy.holders.get(client.id);
  if (delaySec > 0 && current?.handle) {
    // It has come back before its worker ended.
    if (current.handle.present) due = undefined;
    delaySec = 0;
  }
  if (!due) done?.();
  if (due || connection !== undefined) proxy.lastWords.left({ client, will: due, connection }, delaySec, due && done);
}

/** Seconds until its will is due: no longer than its session lasts [MQTT-3.1.2-8]; 0 where it is, or is to be at once. */
function delayOf({ proxy, why, sessionExpiry, endedAt }: Holder, delaySec: number): number {
  if (why === "removed") return 0;
  const now = proxy.served.now();
  return Math.min(delaySec, sessionExpiry) - (now - (endedAt ?? now)) / 1000;
}
