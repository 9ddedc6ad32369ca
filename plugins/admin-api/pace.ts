/** Publish requests take turns with everything else that the process does: many at once hold up no device. */

/** In one turn of the event loop: a millisecond or two. */
const maxInTurn = 5;

/** Undefined where the request may go on at once, else it waits for a turn; first come, first served. */
export function createPace(): () => Promise<void> | undefined {
  const waiting: (() => void)[] = [];
  let begun = 0;
  let isScheduled = false;

  function schedule(): void {
    if (isScheduled) return;
    isScheduled = true;
    setImmediate(nextTurn);
  }

  function nextTurn(): void {
    isScheduled = false;
    const next = waiting.splice(0, maxInTurn);
    begun = next.length;
    if (begun > 0) schedule();
    for (const go of next) go();
  }

  return () => {
    schedule();
    if (begun < maxInTurn && waiting.length === 0) {
      begun++;
      return undefined;
    }
    return new Promise((resolve) => waiting.push(resolve));
  };
}
