/** Work that goes one after the other where it has the same key, and at once where nothing of that is under way. */
import type { Awaitable } from "./store.ts";

/**
 * @param underWay by key, the last of those that have to be waited for; it is forgotten once it is over, whatever came of it
 * @param go is called when what is in front of it is over
 */
export function inTurn<T>(underWay: Map<string, Promise<T>>, key: string, go: () => Awaitable<T>): Awaitable<T> {
  const before = underWay.size > 0 ? underWay.get(key) : undefined;
  const done = before ? before.then(go, go) : go();
  if (!(done instanceof Promise)) return done;
  underWay.set(key, done);
  const forget = (): void => {
    if (underWay.get(key) === done) underWay.delete(key);
  };
  done.then(forget, forget);
  return done;
}
