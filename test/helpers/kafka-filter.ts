/** A KafkaMQTT by itself, and what tests do with one. */
import type { Filter, FilterResult } from "../../kernel/plugin.ts";
import kind from "../../plugins/kafka/index.ts";
import { createPublishContext } from "@sluice/testkit";
import { createFilterMaker } from "@sluice/testkit";
import { createTestHost, type TestHost } from "@sluice/testkit";
import type { KafkaRecord } from "./kafka.ts";

export const kafkaMaker = createFilterMaker(kind, new URL("../../plugins/kafka/schema.json", import.meta.url));

export interface BuiltKafka {
  readonly filter: Filter;
  readonly host: TestHost;
  readonly errors: (reason: string) => Promise<number>;
  [Symbol.asyncDispose](): Promise<void>;
}

export async function buildKafka(
  config: object,
  host = createTestHost({ name: "publish/kafka" }),
): Promise<BuiltKafka> {
  const filter = await kafkaMaker.build(config, host.host);
  return {
    filter,
    host,
    errors: async (reason) => (await host.metricValue("sluice_kafka_errors_total", { reason })) ?? 0,
    async [Symbol.asyncDispose]() {
      await filter.close?.();
      host.close();
    },
  };
}

/** Resolves with the result, or "fault". */
export async function publish(
  { filter }: BuiltKafka,
  payload: string | Buffer,
  options: { clientId?: string; data?: Record<string, unknown> } = {},
): Promise<FilterResult> {
  try {
    return await filter.handle(createPublishContext({ payload, clientId: "c", ...options }));
  } catch {
    return "fault";
  }
}

export function numbersOf(records: readonly KafkaRecord[]): number[] {
  return records.map((record) => Number(String(record.value)));
}

/** 0 up to `count`, without it. */
export function upTo(count: number): number[] {
  return [...Array.from({ length: count }).keys()];
}
