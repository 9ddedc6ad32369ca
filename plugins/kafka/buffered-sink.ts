/** Records to the disk, and from there to Kafka: acknowledged when the disk has them (`ack: buffered`). */
import type { Client, FilterResult, Health, Host, PendingResult } from "@sluice/kernel";
import { createBufferMeter } from "./buffer-meter.ts";
import { joinCluster } from "./cluster.ts";
import type { Config } from "./config.ts";
import { startDrain, type Drain } from "./drain.ts";
import { createHold, keeperOf } from "./hold.ts";
import type { Sink } from "./index.ts";
import { createQueueGauge } from "./queue-gauge.ts";
import { joinBuffer } from "./shared-buffer.ts";
import { encodeRecord } from "./stored-record.ts";
import { waitingFault } from "./waiting-fault.ts";

/** Milliseconds that `close` waits for records that Kafka is about to acknowledge; what is left stays on the disk. */
const closeWithinMs = 3000;
/** Fewer records than this, none of them old, are no backlog: they are on their way. */
const backlog = { records: 1000, ageMs: 2000 };

/** Rejects where the buffer's folder can't be used. */
export async function createBufferedSink(config: Config, host: Host, refuse: (reason: string) => void): Promise<Sink> {
  const { buffer: options } = config;
  if (!options) throw new Error("ack: buffered needs a buffer");
  const { clock, log } = host;
  const handle = await joinBuffer(options, host);
  const { buffer, refused, parking } = handle;
  const waiting = (): number => buffer.stats().records + parking.stats().records;
  const cluster = joinCluster(config, host);
  const meter = createBufferMeter(host.metrics, host.name);
  const labels = { filter: host.name };
  const queue = createQueueGauge(host, () => cluster.health().ok);
  let drain: Drain | undefined;
  const hold = createHold(clock);
  let isClosed = false;

  const { metrics } = host;
  metrics.gauge("sluice_kafka_buffer_records", "Records on disk that Kafka does not have yet", ["filter"], (gauge) =>
    gauge.set(labels, waiting()),
  );
  metrics.gauge("sluice_kafka_buffer_bytes", "Bytes of the disk buffer", ["filter"], (gauge) =>
    gauge.set(labels, buffer.stats().bytes),
  );
  metrics.gauge(
    "sluice_kafka_buffer_age_seconds",
    "Age of the oldest record under way from the buffer",
    ["filter"],
    (gauge) => gauge.set(labels, ageMs() / 1000),
    { merge: "max" },
  );

  handle.attach(() => {
    if (isClosed) return;
    const maxAgeMs = options.maxAge === undefined ? Infinity : options.maxAge * 1000;
    drain = startDrain({ buffer, cluster, refused, parking, clock, log, meter, maxAgeMs, acked: () => queue.acked() });
  });

  function ageMs(): number {
    const oldest = drain?.oldest();
    return oldest === undefined ? 0 : Math.max(0, clock.now() - oldest);
  }

  function fail(reason: string, message: string, client: Client | undefined): never {
    refuse(reason);
    hold.begin(client);
    throw waitingFault(message);
  }

  return {
    take(content, ctx, now): FilterResult | PendingResult {
      const { bytes } = content;
      if (bytes > config.maxQueuedBytes || bytes > options.maxBytes / 2) {
        refuse("recordTooLarge");
        return "recordTooLarge";
      }
      const client = keeperOf(ctx);
      if (isClosed) fail("closed", "the filter is closed", client);
      if (client && hold.isHeld(client)) {
        fail(
          "behindFailed",
          "an earlier packet of the connection failed: to keep their order, this one does too",
          client,
        );
      }
      if (queue.records >= config.maxQueuedRecords || queue.bytes + bytes > config.maxQueuedBytes) {
        fail(
          "queueFull",
          `${queue.records} records (${queue.bytes} bytes) wait for the disk: the queue is full`,
          client,
        );
      }
      queue.enter(bytes);
      return buffer.append(encodeRecord({ content, receivedAt: now }), now + config.deliveryTimeoutMs, client?.id).then(
        () => queue.leave(bytes),
        (error: unknown) => {
          queue.leave(bytes);
          refuse("unbuffered");
          hold.begin(client);
          throw error instanceof Error ? waitingFault(error) : error;
        },
      );
    },

    health(): Health {
      const { isFull, problem } = buffer.stats();
      const records = waiting();
      const kafka = cluster.health();
      const { detail = "" } = kafka;
      if (problem !== undefined)
        return { ok: false, detail: `failing: the buffer can't be written: ${problem}; ${detail}` };
      if (isFull) {
        return { ok: false, detail: `failing: the buffer is full (${records} records); ${detail}` };
      }
      const isBehind = records > backlog.records || ageMs() > backlog.ageMs || !kafka.ok;
      if (!isBehind) return kafka;
      return { ok: true, detail: `buffering (${records} records, ${Math.round(ageMs() / 1000)} s): ${detail}` };
    },

    async close() {
      isClosed = true;
      await drain?.stop(closeWithinMs);
      await cluster.leave(drain?.owners() ?? []);
      await handle.leave();
    },
  };
}
