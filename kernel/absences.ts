/** Sessions whose clients are away: how many, since when, and when each ends. */
import type { Expiries } from "./expiries.ts";
import type { Ledger } from "./ledger.ts";
import { neverExpires } from "./session.ts";
import type { Held } from "./session-handle.ts";

export interface Absences {
  readonly count: number;
  /** @param at when its client left, in milliseconds since the epoch */
  begin(held: Held, at: number): void;
  /** Its client is here again, or the session has ended. */
  end(held: Held): void;
  /** Writes down that its client is here, or since when it is away, where the session lasts. */
  record(held: Held, absentSince: number): void;
}

export function createAbsences({ expiries, ledger }: { expiries: Expiries; ledger: Ledger | undefined }): Absences {
  let count = 0;
  return {
    get count() {
      return count;
    },
    begin(held, at) {
      count++;
      const { expirySec } = held.session;
      if (expirySec === neverExpires) return;
      held.expiresAt = at + expirySec * 1000;
      expiries.add(held.expiresAt, held.expire);
    },
    end(held) {
      count--;
      expiries.delete(held.expiresAt, held.expire);
      held.expiresAt = 0;
    },
    record(held, absentSince) {
      if (!ledger || (held.session.expirySec === 0 && !held.recorded)) return;
      held.recorded = true;
      const { session, connectedAt, info } = held;
      ledger.session(session, { absentSince, connectedAt, username: info.username });
    },
  };
}
