/** The way of one gateway to all NATS servers, which can be cut off, fall silent and slow down. */
import { startFaultProxy, type FaultMode } from "../faults/fault-proxy.ts";
import type { Nats } from "./nats.ts";

export interface NatsLink {
  /** What the gateway is to take the servers for. */
  readonly urls: string[];
  /** @param delayMs for `delay`: milliseconds one way */
  set(mode: FaultMode, delayMs?: number): void;
  close(): Promise<void>;
}

/** @param nats one that does not advertise its servers, or the gateway finds the way around */
export async function startNatsLink(nats: Nats): Promise<NatsLink> {
  const proxies = await Promise.all(nats.urls.map((url) => startFaultProxy(Number(new URL(url).port))));
  return {
    urls: proxies.map(({ port }) => `nats://127.0.0.1:${port}`),
    set(mode, delayMs) {
      for (const proxy of proxies) proxy.set(mode, delayMs);
    },
    async close() {
      await Promise.all(proxies.map((proxy) => proxy.close()));
    },
  };
}
