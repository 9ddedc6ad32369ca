/** What ends at a time: sessions of absent clients, retained messages. Coarse: a second after its time at the latest. */
export interface Expiries {
  /** @param at milliseconds since the epoch */
  add(at: number, due: () => void): void;
  /** Takes back what was added with the same two. */
  delete(at: number, due: () => void): void;
  close(): void;
}

export function createExpiries(now: () => number): Expiries {
  const bySecond = new Map<number, Set<() => void>>();
  let timer: NodeJS.Timeout | undefined;
  let closed = false;
  let last = 0;

  function settle(second: number): void {
    const due = bySecond.get(second);
    if (!due) return;
    bySecond.delete(second);
    for (const each of due) each();
  }

  function tick(): void {
    const second = Math.floor(now() / 1000);
    if (second - last <= bySecond.size && second >= last) {
      for (let at = last + 1; at <= second; at++) settle(at);
    } else {
      // The clock has jumped, or little is left.
      for (const at of bySecond.keys()) if (at <= second) settle(at);
    }
    last = second;
    if (bySecond.size === 0) {
      clearInterval(timer);
      timer = undefined;
    }
  }

  return {
    add(at, due) {
      if (closed) return;
      const second = Math.ceil(at / 1000);
      const there = bySecond.get(second);
      if (there) there.add(due);
      else bySecond.set(second, new Set([due]));
      if (!timer) {
        last = Math.floor(now() / 1000);
        timer = setInterval(tick, 1000).unref();
      }
      last = Math.min(last, second - 1);
    },
    delete(at, due) {
      const second = Math.ceil(at / 1000);
      const there = bySecond.get(second);
      if (there?.delete(due) && there.size === 0) bySecond.delete(second);
    },
    close() {
      closed = true;
      clearInterval(timer);
      timer = undefined;
      bySecond.clear();
    },
  };
}
