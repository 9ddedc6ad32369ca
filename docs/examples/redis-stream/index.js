// @ts-check
import { createClient } from "@redis/client";

/**
 * @typedef {{ readonly url: string, readonly stream: string, readonly maxLength: number, readonly maxQueued: number }} Options
 * @type {import("@sluice/kernel").FilterKind<Options>}
 */
const kind = {
  kind: "RedisStream",
  packets: ["Publish"],
  results: [],
  // One connection answers in the order in which it was asked, so a device's next message need not wait for the last.
  concurrent: true,

  create({ url, stream, maxLength, maxQueued }, host) {
    const written = host.metrics
      .counter("redis_stream_messages_total", "Messages that Redis has.", ["filter"])
      .with({ filter: host.name });
    /** @type {string | undefined} */
    let problem = "not connected yet";
    const client = createClient({
      url,
      commandsQueueMaxLength: maxQueued,
      // Away is away: the device keeps the message and sends it again.
      disableOfflineQueue: true,
      socket: { reconnectStrategy: (tries) => Math.min(100 * 2 ** tries, 3000) },
    });
    client.on("ready", () => {
      problem = undefined;
    });
    client.on("error", (/** @type {Error} */ error) => {
      // Once for each time that it goes, not for each try to come back.
      if (problem === undefined) host.log.warn({ error: error.message }, "Redis is away");
      problem = error.message || "not connected";
    });
    // A filter is built while the systems behind it are away, and connects when they come.
    client.connect().catch(() => undefined);

    const trim = maxLength > 0 ? ["MAXLEN", "~", String(maxLength)] : [];
    return {
      handle(ctx) {
        if (ctx.type !== "Publish") return;
        const { topic, payload } = ctx.packet;
        const fields = ["client", ctx.client.id, "topic", topic, "payload", payload];
        const added = client.sendCommand(["XADD", stream, ...trim, "*", ...fields]);
        return withSignal(added, ctx.signal).then(() => written.inc());
      },
      close() {
        client.destroy();
      },
      health: () => (problem === undefined ? { ok: true } : { ok: false, detail: problem }),
    };
  },
};
export default kind;

/**
 * Rejects as soon as the packet's deadline has passed: nobody waits for the answer any more.
 * @template T @param {Promise<T>} work @param {AbortSignal} signal @returns {Promise<T>}
 */
function withSignal(work, signal) {
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(new Error("Redis did not answer before the deadline"));
    if (signal.aborted) onAbort();
    signal.addEventListener("abort", onAbort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener("abort", onAbort));
  });
}
