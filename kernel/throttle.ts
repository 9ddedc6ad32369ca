/** Keeps repeated log lines from becoming a flood: the first is let through, then one each `ms` with the count between. */
export function createThrottle(ms: number, maxKeys = 1000): (key: string, log: (suppressed: number) => void) => void {
  const seen = new Map<string, { since: number; suppressed: number }>();
  return (key, log) => {
    const now = performance.now();
    const last = seen.get(key);
    if (last && now - last.since < ms) {
      last.suppressed++;
      return;
    }
    if (!last && seen.size >= maxKeys) seen.delete(seen.keys().next().value ?? "");
    seen.set(key, { since: now, suppressed: 0 });
    log(last?.suppressed ?? 0);
  };
}
