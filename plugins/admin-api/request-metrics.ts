/** Counts and times HTTP requests; routes are named by their pattern, so that the number of series is bounded. */
import type { Metrics } from "@sluice/kernel";

export type ObserveRequest = (method: string, route: string, status: number, seconds: number) => void;

/** Seconds: a publish takes a fraction of a millisecond, a listing of many sessions tens of them. */
const buckets = [0.0002, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1, 5, 30];
const methods = new Set(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]);

export function createRequestMetrics(metrics: Metrics): ObserveRequest {
  const requests = metrics.counter("sluice_http_requests_total", "HTTP requests to the admin API.", [
    "method",
    "route",
    "status",
  ]);
  const durations = metrics.histogram(
    "sluice_http_request_duration_seconds",
    "Seconds from a request's header to its answer.",
    ["route"],
    buckets,
  );
  const counts = new Map<string, ReturnType<typeof requests.with>>();
  const timers = new Map<string, ReturnType<typeof durations.with>>();

  return (method, route, status, seconds) => {
    const known = methods.has(method) ? method : "other";
    const key = `${known} ${route} ${status}`;
    let count = counts.get(key);
    if (!count) counts.set(key, (count = requests.with({ method: known, route, status: String(status) })));
    count.inc();
    let timer = timers.get(route);
    if (!timer) timers.set(route, (timer = durations.with({ route })));
    timer.observe(seconds);
  };
}
