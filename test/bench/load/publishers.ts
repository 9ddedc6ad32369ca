/** Clients that publish: as fast as they are answered, or at a rate that doesn't care. */
import { type Address, type LoadClient, openClients } from "./client.ts";
import { createRing, nowMs, pingreq, type Ring, types } from "./frames.ts";
import { createLatencies } from "./latencies.ts";
import type { Load, Running } from "./load.ts";

export interface PublishersOptions {
  readonly address: Address;
  readonly clients: number;
  readonly qos: 0 | 1;
  /** Messages of a client that are not answered yet; at QoS 0, where nothing answers, every half window has a PINGREQ. */
  readonly window: number;
  readonly payloadBytes: number;
  /** Clients take turns in them; all of one length. */
  readonly topics: readonly string[];
  /** Messages a second of all together, whether answered or not; without it, as fast as they are answered. */
  readonly rate?: number | undefined;
  /** With a rate: payloads begin with the time at which they are sent, as a double of milliseconds. */
  readonly isStamped?: boolean | undefined;
  /** The end closes the connections at once, whatever is still under way. */
  readonly isAbrupt?: boolean | undefined;
  readonly prefix?: string | undefined;
  readonly username?: string | undefined;
  readonly password?: string | undefined;
}

/** Bytes that a socket holds back before a client of a given rate leaves messages out. */
const maxHeldBytes = 256 * 1024;
const tickMs = 2;
/** Of devices that don't wait for each other. */
const stampedTickMs = 1;

export const publishers: Load<PublishersOptions> = {
  async start(options) {
    const {
      address,
      qos,
      window,
      payloadBytes,
      topics,
      rate,
      isStamped = false,
      isAbrupt = false,
      prefix = "load",
      username,
      password,
    } = options;
    const count = options.clients;
    const payload = Buffer.alloc(payloadBytes, "x");
    const latencies = createLatencies();
    const totals = { sent: 0, acked: 0, skipped: 0, closed: 0 };
    let stopping = false;

    function ringOf(n: number): Ring {
      const own = topics.length <= count ? [topics[n % topics.length]!] : topics.filter((_, i) => i % count === n);
      // An id is used again only when many later ones have been acknowledged.
      const slots = Math.min(65_535, Math.max(window * 4, own.length, 8));
      return createRing(own, payload, qos, slots);
    }

    const shared = topics.length === 1 ? ringOf(0) : undefined;
    const optionsOf = (n: number) => ({ clientId: `${prefix}-${n}`, username, password });
    const opened = await openClients(address, count, optionsOf);
    const senders = opened.map((client, n) => createSender(client, shared ?? ringOf(n)));

    function createSender({ socket }: LoadClient, ring: Ring) {
      const { slots, bytes, frameBytes, payloadAt } = ring;
      const sentAt = new Float64Array(slots);
      const own = isStamped ? Buffer.from(bytes) : bytes;
      let cursor = 0;
      let credit = 0;
      let underway = 0;

      function send(messages: number, now: number): void {
        let left = messages;
        while (left > 0) {
          const run = Math.min(left, slots - cursor);
          if (qos === 1) sentAt.fill(now, cursor, cursor + run);
          socket.write(own.subarray(cursor * frameBytes, (cursor + run) * frameBytes));
          cursor = (cursor + run) % slots;
          left -= run;
        }
        totals.sent += messages;
        underway += messages;
      }
      return {
        begin(): void {
          const now = nowMs();
          if (qos === 1) {
            send(window, now);
            return;
          }
          const half = Math.max(1, window >> 1);
          for (let n = 0; n < 2; n++) {
            send(half, now);
            socket.write(pingreq);
          }
        },
        /** At a given rate. */
        offer(messages: number, now: number): void {
          const room = socket.writableLength > maxHeldBytes ? 0 : slots - underway;
          const taken = Math.min(room, messages);
          totals.skipped += messages - taken;
          if (taken === 0) return;
          if (isStamped) {
            for (let n = 0; n < taken; n++) {
              own.writeDoubleLE(now, ((cursor + n) % slots) * frameBytes + payloadAt);
            }
          }
          send(taken, now);
          if (qos === 0) underway = 0;
        },
        acked: (type: number, frame: Buffer, body: number): void => {
          if (type === types.puback) {
            const slot = ((frame[body]! << 8) | frame[body + 1]!) - 1;
            latencies.add(chunkAt() - sentAt[slot]!);
            credit++;
          } else if (type === types.pingresp && rate === undefined) credit += Math.max(1, window >> 1);
        },
        chunk(): void {
          totals.acked += credit;
          underway -= credit;
          const messages = credit;
          credit = 0;
          if (messages === 0 || stopping || rate !== undefined) return;
          if (qos === 1) {
            send(messages, nowMs());
            return;
          }
          // One answer for each half window, also where two came at once.
          const half = Math.max(1, window >> 1);
          for (let left = messages; left > 0; left -= half) {
            send(half, nowMs());
            socket.write(pingreq);
          }
        },
        underway: () => underway,
      };
    }

    // One look at the clock for all packets of a chunk.
    let at = 0;
    const chunkAt = (): number => (at ||= nowMs());
    for (const [n, client] of opened.entries()) {
      const sender = senders[n]!;
      client.onFrame = sender.acked;
      client.onChunk = () => {
        at = 0;
        sender.chunk();
      };
      client.onClose = () => totals.closed++;
    }

    let timer: NodeJS.Timeout | undefined;
    if (rate === undefined) for (const sender of senders) sender.begin();
    else {
      const startedAt = nowMs();
      let offered = 0;
      timer = setInterval(
        () => {
          const now = nowMs();
          const due = Math.floor(((now - startedAt) * rate) / 1000);
          // Each client's share in one write, and what is over to those whose turn it is.
          const share = Math.floor((due - offered) / senders.length);
          if (share > 0) for (const sender of senders) sender.offer(share, nowMs());
          offered += share * senders.length;
          // Each with a look at the clock of its own: a write takes as long as it takes to wake who reads.
          for (; offered < due; offered++) senders[offered % senders.length]!.offer(1, nowMs());
        },
        isStamped ? stampedTickMs : tickMs,
      );
    }

    const read = () => ({ ...totals, latencies: latencies.read() });
    const running: Running = {
      read,
      async stop() {
        stopping = true;
        clearInterval(timer);
        // What is under way is still answered, or the server doesn't answer any more.
        const until = nowMs() + 10_000;
        const isOver = () => isAbrupt || totals.closed > 0 || senders.every((sender) => sender.underway() <= 0);
        while (!isOver() && nowMs() < until) await new Promise((resolve) => setTimeout(resolve, 20));
        for (const client of opened) client.destroy();
        return read();
      },
    };
    return running;
  },
};
