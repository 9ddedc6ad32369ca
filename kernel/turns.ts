/**
 * How much the connections of a proxy may read in one turn of the event loop, so that a flood on some of them holds up
 * nobody else. Of itself libuv would read 2 MiB from each of them before it looks at anything else, seconds in all, and
 * it accepts one connection a turn.
 */

/** What reads again when it has its turn. */
export interface Waiting {
  takeTurn(): void;
}

export interface Turns {
  /** So many bytes have been read; true where that was enough for this turn: then `takeTurn` is called later. */
  spend(by: Waiting, bytes: number): boolean;
}

/** Some thousand small messages: a few milliseconds. */
const maxTurnBytes = 256 * 1024;

/** Node reads so much at once. */
const readBytes = 64 * 1024;

/** Who has less to say has it said: it is not the flood. */
const smallBytes = 8 * 1024;

/** Turns in which nobody reads who has to wait, so that connections come in while there is a flood. */
const quietTurns = 8;

export function createTurns(): Turns {
  const waiting: Waiting[] = [];
  let spent = 0;
  let quiet = 0;
  let isScheduled = false;

  function schedule(): void {
    if (isScheduled) return;
    isScheduled = true;
    setImmediate(begin);
  }

  function begin(): void {
    isScheduled = false;
    spent = 0;
    if (waiting.length === 0) return;
    schedule();
    if (quiet++ < quietTurns) return;
    quiet = 0;
    const next = waiting.splice(0, maxTurnBytes / readBytes);
    for (const each of next) each.takeTurn();
  }

  return {
    spend(by, bytes) {
      schedule();
      spent += bytes;
      if (spent < maxTurnBytes || bytes < smallBytes) return false;
      waiting.push(by);
      return true;
    },
  };
}
