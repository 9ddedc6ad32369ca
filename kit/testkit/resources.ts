/** What some work has opened in this process and not closed: timers (also those that don't keep it alive), sockets, servers, watchers, listeners. */
import { AsyncLocalStorage, createHook } from "node:async_hooks";
import { setTimeout as sleep } from "node:timers/promises";

export interface ResourceTracker {
  /** What `work`, and all that it sets going, opens is followed. */
  run<T>(work: () => T): T;
  /** What is still open after a while: its sort and the line that opened it. */
  left(): Promise<string[]>;
  /** Ends the following. */
  close(): void;
}

/** Node's names for them. Promises, ticks and single requests end by themselves. */
const followed = new Set([
  "FILEHANDLE",
  "FSEVENTWRAP",
  "Immediate",
  "MESSAGEPORT",
  "PIPESERVERWRAP",
  "PIPEWRAP",
  "PROCESSWRAP",
  "SIGNALWRAP",
  "STATWATCHER",
  "TCPSERVERWRAP",
  "TCPWRAP",
  "Timeout",
  "UDPWRAP",
  "WORKER",
]);

/** A connection that is being closed, or kept for a next request, needs a moment. */
const patienceMs = 5000;
const pollMs = 10;

export function trackResources(): ResourceTracker {
  const inside = new AsyncLocalStorage<true>();
  const open = new Map<number, string>();
  const hook = createHook({
    init(id, type) {
      if (followed.has(type) && inside.getStore()) open.set(id, `${type}${opener()}`);
    },
    destroy: (id) => void open.delete(id),
  });
  hook.enable();
  const listenersBefore = listeners();

  function look(): string[] {
    const more = [...listeners()].filter(([event, count]) => count > (listenersBefore.get(event) ?? 0));
    return [...open.values(), ...more.map(([event]) => `a listener of the process's "${String(event)}"`)];
  }

  return {
    run: (work) => inside.run(true, work),
    async left() {
      const until = performance.now() + patienceMs;
      for (;;) {
        const found = look();
        if (found.length === 0 || performance.now() > until) return found;
        await sleep(pollMs);
      }
    },
    close: () => void hook.disable(),
  };
}

function listeners(): Map<string | symbol, number> {
  return new Map(process.eventNames().map((event) => [event, process.listenerCount(event)]));
}

/** The first line of the stack that is neither Node's nor ours. */
function opener(): string {
  const lines = (new Error().stack ?? "").split("\n").slice(1);
  const line = lines.find((each) => /file:\/\/|\(\//.test(each) && !each.includes(import.meta.url));
  return line === undefined ? "" : ` opened ${line.trim()}`;
}
