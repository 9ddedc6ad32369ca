/** The logs of one filter: a bound on what is queued, a bound on open files, and their upkeep. */
import { resolve } from "node:path";
import type { Client, Health, Host } from "@sluice/kernel";
import type { Config } from "./config.ts";
import { beginHold, isHeld } from "./hold.ts";
import { createLog, lineEndBytes } from "./log.ts";
import type { TopicLog } from "./log.ts";
import { createMeter } from "./meter.ts";
import type { PendingLine } from "./record.ts";
import { waitingFault } from "./waiting-fault.ts";
import { workerFolder } from "./worker-folder.ts";

const upkeepMs = 10_000;
/** Less than a pipeline's usual deadline, so that the reason is told, and enough for a replaced filter to finish. */
const lockWaitMs = 10_000;

export interface Logs {
  /** @param keeper who sends the packet again where its line is not written */
  append(line: PendingLine, keeper: Client | undefined): Promise<void>;
  health(): Health;
  close(): Promise<void>;
}

export function openLogs(config: Config, host: Host): Logs {
  const folder = workerFolder(resolve(host.folder, config.dir), host.worker.index);
  /** The least recently used first. */
  const logs = new Map<string, TopicLog>();
  const closing = new Map<string, Promise<void>>();
  const waiting: (() => void)[] = [];
  let places = config.maxOpenFiles;
  let queuedBytes = 0;
  let closed = false;
  const meter = createMeter(host, {
    queuedBytes: () => queuedBytes,
    openFiles: () => config.maxOpenFiles - places,
  });
  let upkeepTimer = host.clock.setTimeout(upkeep, upkeepMs);
  let upkeepDone = Promise.resolve();

  function append({ topic, text }: PendingLine, keeper: Client | undefined): Promise<void> {
    if (closed) fail("the filter is closed", keeper);
    if (keeper && isHeld(keeper, host.clock)) {
      meter.withheld(1);
      fail("an earlier packet of the connection failed: to keep their order, this one does too", keeper);
    }
    const bytes = Buffer.byteLength(text) + lineEndBytes;
    if (queuedBytes + bytes > config.maxQueuedBytes) {
      meter.refused();
      fail(
        `${queuedBytes} bytes wait to be written, and maxQueuedBytes is ${config.maxQueuedBytes}: the disk is too slow`,
        keeper,
      );
    }
    queuedBytes += bytes;
    const log = logs.get(topic) ?? addLog(topic);
    logs.delete(topic);
    logs.set(topic, log);
    return log.append(text, bytes, keeper);
  }

  function fail(problem: string, keeper: Client | undefined): never {
    if (keeper) beginHold(keeper, host.clock);
    throw waitingFault(`${folder}: ${problem}`);
  }

  function addLog(topic: string): TopicLog {
    const log = createLog({
      folder,
      topic,
      config,
      owner: host.name,
      lockWaitMs,
      clock: host.clock,
      log: host.log,
      meter,
      takePlace: () => takePlace(topic),
      leavePlace() {
        const next = waiting.shift();
        if (next) next();
        else places++;
      },
      onSettled(bytes) {
        queuedBytes -= bytes;
      },
      onIdle() {
        // A log that could not be opened is not kept: devices may choose topics.
        if (!closed && (!log.isOpen() || waiting.length > closing.size)) retire(topic, log);
      },
    });
    return log;
  }

  async function takePlace(topic: string): Promise<void> {
    await closing.get(topic);
    if (places > 0) {
      places--;
      return;
    }
    const place = new Promise<void>((granted) => waiting.push(granted));
    for (const [name, log] of logs) {
      if (waiting.length <= closing.size) break;
      if (log.isIdle() && log.isOpen()) retire(name, log);
    }
    await place;
  }

  function retire(topic: string, log: TopicLog): void {
    if (logs.get(topic) !== log || !log.isIdle()) return;
    logs.delete(topic);
    // Only one that is open will leave a place, which is what takePlace counts on.
    if (log.isOpen())
      closing.set(
        topic,
        log.close().finally(() => closing.delete(topic)),
      );
  }

  function upkeep(): void {
    upkeepDone = lookAfterAll();
  }

  async function lookAfterAll(): Promise<void> {
    await Promise.all([...logs.values()].map((log) => log.maintain()));
    if (!closed) upkeepTimer = host.clock.setTimeout(upkeep, upkeepMs);
  }

  return {
    append,
    health() {
      const problem = meter.problem();
      if (problem !== undefined) return { ok: false, detail: problem };
      return { ok: true, detail: `writing to ${folder}` };
    },
    async close() {
      closed = true;
      upkeepTimer.clear();
      await Promise.all([...[...logs.values()].map((log) => log.close()), ...closing.values()]);
      await upkeepDone;
    },
  };
}
