/** Waits for what becomes of one message at each session that gets it. */
import type { Clock, PublishOutcome, PublishReceipt } from "./plugin.ts";
import type { Awaitable, Receipt } from "./store.ts";

/** Sessions that one publish may be waited for; what becomes of the message at others is counted, not listed. */
const maxListed = 10_000;

/**
 * @param waitMs from now on; who has not answered by then is a `timeout`
 * @param send hands the message out, telling of each session
 */
export async function withReceipts(
  waitMs: number,
  clock: Clock,
  send: (receipts: (clientId: string, outcome: Receipt) => void) => Awaitable<PublishOutcome>,
): Promise<PublishOutcome> {
  const known = new Map<string, PublishReceipt["outcome"]>();
  const unlisted: Record<PublishReceipt["outcome"], number> = { delivered: 0, queued: 0, refused: 0, timeout: 0 };
  const { promise: allKnown, resolve } = Promise.withResolvers<void>();
  let waiting = 0;
  let isSent = false;
  const timer = clock.setTimeout(resolve, waitMs);
  const settle = (): void => {
    if (isSent && waiting === 0) resolve();
  };
  try {
    const outcome = await send((clientId, receipt) => {
      if (receipt === "waiting") {
        waiting++;
        if (known.size < maxListed) known.set(clientId, "timeout");
        return;
      }
      waiting--;
      if (receipt === "passedOn") known.delete(clientId);
      else if (known.has(clientId)) known.set(clientId, receipt);
      else unlisted[receipt]++;
      settle();
    });
    isSent = true;
    settle();
    await allKnown;
    const receipts = [...known].map(([clientId, what]): PublishReceipt => ({ clientId, outcome: what }));
    for (const { outcome: what } of receipts) unlisted[what]++;
    // Who has not answered and is not listed.
    unlisted.timeout = waiting;
    return { ...outcome, receipts, receiptCounts: unlisted };
  } finally {
    timer.clear();
  }
}
