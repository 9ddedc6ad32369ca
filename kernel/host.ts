/** What filters and services are handed: the gateway seen from a plugin. */
import type { Clock, Host, Logger, Metrics } from "./plugin.ts";

/** The part of {@link Host} that is the same for every instance. */
export type SharedHost = Omit<Host, "name" | "log" | "metrics" | "signal">;

export interface HostSource {
  readonly shared: SharedHost;
  readonly metrics: Metrics & { scoped(signal: AbortSignal): Metrics };
  readonly log: RootLogger;
}

/** A logger that can make one with fixed fields: pino's, which the command line brings. */
export interface RootLogger extends Logger {
  level: string;
  child(fields: object): RootLogger;
}

export const systemClock: Clock = {
  now: () => Date.now(),
  setTimeout(callback, ms) {
    const timer = setTimeout(callback, ms);
    return { clear: () => clearTimeout(timer) };
  },
};

/**
 * Made once: an error remembers the calls that it was made in, and by them what they hold. One made at each close would
 * keep every earlier generation in memory, each held by the next.
 */
const closed = new DOMException("This instance is closed", "AbortError");

/** A host for one instance, and the `abort` that ends its signal and its gauges. */
export function createHost(source: HostSource, name: string, fields: object): { host: Host; abort: () => void } {
  const controller = new AbortController();
  const host: Host = Object.create(source.shared, {
    name: { value: name, enumerable: true },
    log: { value: source.log.child(fields), enumerable: true },
    metrics: { value: source.metrics.scoped(controller.signal), enumerable: true },
    signal: { value: controller.signal, enumerable: true },
  }) as Host;
  return { host, abort: () => controller.abort(closed) };
}
