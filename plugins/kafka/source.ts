/** KafkaSource: records become MQTT messages, and are committed when the message is in every session that matches. */
import type { Host, PublishOutcome, Service, ServiceKind } from "@sluice/kernel";
import { createClient } from "./client.ts";
import { brokersOf } from "./config.ts";
import { createDeadLetter } from "./dead-letter.ts";
import { validateSource, type SourceConfig } from "./source-config.ts";
import { startConsumer, type SourceConsumer } from "./source-consumer.ts";
import { createAllowance, createSourceLane, type Handled } from "./source-lane.ts";
import { createMapper, type Mapped, type SourceRecord, type Unmapped } from "./source-mapper.ts";
import { createSourceMeter, type SourceState } from "./source-meter.ts";

/** Milliseconds that records under way have to finish at a stop; the rest is read again after the next start. */
const drainMs = 4000;
/** Milliseconds between looks whether the config that names this source is the one that runs. */
const lookMs = 50;

const kind: ServiceKind<SourceConfig> = { kind: "KafkaSource", validate: validateSource, create: createSource };
export default kind;

interface SourceService extends Service {
  /** Resolves when it has left its group. */
  readonly gone: Promise<void>;
}

function createSource(config: SourceConfig, host: Host): SourceService {
  const { clock } = host;
  const kafka = createClient(config, host.name, (fields, message) => host.log.debug(fields, message));
  const deadLetter =
    config.deadLetter === undefined ? undefined : createDeadLetter(kafka, config.deadLetter, host.name, clock);
  const map = createMapper(config);
  const allowance = createAllowance(config.maxInFlight);
  const meter = createSourceMeter(host, stateOf);
  const gone = Promise.withResolvers<void>();
  const stop = Promise.withResolvers<void>();
  let isStopping = false;
  let before: Promise<void> | undefined;
  let beginning: Promise<void> | undefined;
  let consumer: SourceConsumer | undefined;
  let failure: { readonly message: string; readonly since: number } | undefined;
  let missing: readonly string[] = [];
  let retrying: string | undefined;

  function stateOf(): SourceState {
    const { partitions = [], isJoined = false } = consumer ?? {};
    const lagByTopic = new Map<string, number>();
    let [queued, queuedBytes] = [0, 0];
    for (const { topic, lane, end } of partitions) {
      queued += lane.queued;
      queuedBytes += lane.queuedBytes;
      const lag = end > lane.position ? Number(end - lane.position) : 0;
      lagByTopic.set(topic, (lagByTopic.get(topic) ?? 0) + lag);
    }
    const isConnected = isJoined && failure === undefined;
    return { inFlight: allowance.used, queued, queuedBytes, partitions: partitions.length, isConnected, lagByTopic };
  }

  async function handle(record: SourceRecord): Promise<Handled> {
    const mapped = map(record);
    return "reason" in mapped ? giveUp(record, mapped) : publish(record, mapped);
  }

  async function publish(record: SourceRecord, { message, clientId }: Mapped): Promise<Handled> {
    const request = {
      ...(clientId === undefined ? {} : { clientId }),
      ...(config.commit === "acknowledged" ? { waitMs: config.acknowledgeTimeoutMs } : {}),
    };
    try {
      const outcome = await host.publish(config.proxy, message, request);
      retrying = undefined;
      count(outcome);
      return "done";
    } catch (error) {
      const text = error instanceof Error ? error.message : String(error);
      const code = error instanceof Error && "code" in error ? String(error.code) : "UNKNOWN";
      // Of all that a publish can say, these alone are about the record: no retry makes it better.
      if (code === "TOPIC_INVALID") return giveUp(record, { reason: "illegalTopic", detail: text });
      if (code === "PROPERTIES_INVALID") return giveUp(record, { reason: "properties", detail: text });
      retrying = text;
      meter.retried(record, code, text);
      return error instanceof Error ? error : new Error(text);
    }
  }

  function count({ matched, uncounted, receiptCounts }: PublishOutcome): void {
    if ((receiptCounts?.timeout ?? 0) > 0) meter.unacknowledged();
    meter.ended(matched === 0 && !uncounted ? "nobody" : "published");
  }

  /** Never before it is safe elsewhere, where there is an elsewhere. */
  async function giveUp(record: SourceRecord, why: Unmapped): Promise<Handled> {
    if (deadLetter) {
      const failed = await deadLetter.send(record, why);
      if (failed === undefined) {
        meter.unmapped(record, why, `it is in ${config.deadLetter}`);
        meter.ended("deadLettered");
        return "done";
      }
      if (failed !== "refused") {
        retrying = `the dead-letter topic ${config.deadLetter} can't be written: ${failed.message}`;
        meter.deadLetterFailed(failed.reason, failed.message);
        return new Error(failed.message);
      }
    }
    const refused = deadLetter ? `${config.deadLetter} can't take it either: ` : "";
    if (config.onUnmapped === "stop") {
      meter.unmapped(record, why, `${refused}its partition waits (onUnmapped: stop)`);
      return "held";
    }
    meter.unmapped(record, why, `${refused}it is skipped, and stays in its topic`);
    meter.ended("skipped");
    return "done";
  }

  /** When the listeners are ready, the config has been taken on, and the source that this one replaces has left. */
  async function begin(): Promise<void> {
    await Promise.race([host.ready, stop.promise]);
    await Promise.race([before, stop.promise]);
    while (!isStopping && !isRunning(host)) {
      await Promise.race([new Promise<void>((resolve) => void clock.setTimeout(resolve, lookMs)), stop.promise]);
    }
    if (isStopping) return;
    consumer = startConsumer(config, {
      kafka,
      clock,
      openLane: (start, after) =>
        createSourceLane(start, after, {
          clock,
          allowance,
          maxInFlight: config.maxInFlightPerPartition,
          handle,
          advanced: () => consumer?.advanced(),
        }),
      isCrowded: () => stateOf().queuedBytes > config.maxQueuedBytes,
      failed(what) {
        failure ??= { message: what.message, since: clock.now() };
        meter.failed(what);
      },
      missing(topics) {
        missing = topics;
        meter.missing(topics);
      },
      joined(assigned) {
        failure = undefined;
        meter.joined(assigned);
      },
      paused: () => meter.paused(),
      committed() {
        failure = undefined;
        meter.committed();
      },
    });
  }

  return {
    gone: gone.promise,
    // The kernel only hands over services of the same kind.
    adopt(previous) {
      before = (previous as SourceService).gone;
    },
    start() {
      beginning = begin();
      beginning.catch(() => undefined);
    },
    async stop() {
      isStopping = true;
      stop.resolve();
      await beginning?.catch(() => undefined);
      await consumer?.stop(drainMs);
      await deadLetter?.close();
      gone.resolve();
    },
    health() {
      const at = `Kafka at ${brokersOf(config).join(", ")}`;
      const failing = (what: string) => ({ ok: false, detail: `failing: ${at}: ${what}` });
      const held = consumer?.partitions.find(({ lane }) => lane.isHeld);
      if (failure) return failing(`${failure.message} (for ${Math.round((clock.now() - failure.since) / 1000)} s)`);
      if (missing.length > 0) return failing(`no topic ${missing.join(", ")}`);
      if (held)
        return failing(
          `partition ${held.partition} of ${held.topic} waits at ${held.lane.position}: a record can't be mapped`,
        );
      if (retrying !== undefined && consumer?.partitions.some(({ lane }) => lane.isRetrying)) return failing(retrying);
      if (!consumer?.isJoined) return { ok: false, detail: `connecting: ${at}` };
      const { partitions, lagByTopic } = stateOf();
      const lag = [...lagByTopic.values()].reduce((sum, each) => sum + each, 0);
      return { ok: true, detail: `connected: ${at}, group ${config.group}, ${partitions} partitions, lag ${lag}` };
    },
  };
}

function isRunning(host: Host): boolean {
  return host.config.documents().some(({ kind: its, name }) => its === kind.kind && name === host.name);
}
