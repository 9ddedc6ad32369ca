/** Errors that nothing caught. */
import type { Gateway } from "../gateway.ts";
import type { Logger } from "../plugin.ts";

/**
 * A plugin's timer that throws, or a promise that nobody awaits, must not end everybody's connections. It is logged and
 * counted; what a filter's own `handle` throws never comes this far.
 */
export function surviveStrays({ host }: Gateway, log: Logger): void {
  const strays = host.metrics.counter(
    "sluice_stray_errors_total",
    "Errors that nothing caught: a plugin's defect, or ours.",
  );
  process.on("uncaughtException", (error, origin) => {
    strays.inc();
    log.error({ err: error, origin }, "An error that nothing caught; the gateway goes on");
  });
}
