/** KafkaMQTT: each packet becomes a Kafka record, and is through when Kafka, the disk or, if asked for, nobody has it. */
import type { Filter, FilterContext, FilterKind, FilterResult, Health, Host, PendingResult } from "@sluice/kernel";
import { createAddedHeaders } from "./added-headers.ts";
import { createBufferedSink } from "./buffered-sink.ts";
import { joinCluster } from "./cluster.ts";
import { validate, type Config } from "./config.ts";
import { createDirectSink } from "./direct-sink.ts";
import { createRecordBuilder, type Content } from "./record.ts";

const kind: FilterKind<Config> = {
  kind: "KafkaMQTT",
  packets: ["Connect", "Publish", "Subscribe", "Unsubscribe", "Disconnect"],
  results: ["getDataFailed", "illegalTopic", "recordTooLarge", "invalidRecord"],
  // None is in `discards`: a record that can't be written is a fault, unless jumpIf says where it goes instead.
  concurrent: true,
  validate,
  create: createFilter,
};
export default kind;

/** Where records go: to Kafka, or to the disk first. */
export interface Sink {
  /**
   * Nothing, now or later: the packet is through. A string: a result. Throws or rejects where it is not kept.
   * @param now milliseconds since the epoch
   */
  take(content: Content, ctx: FilterContext, now: number): FilterResult | PendingResult;
  health(): Health;
  close(): Promise<void>;
}

async function createFilter(config: Config, host: Host): Promise<Filter> {
  const { clock } = host;
  const build = createRecordBuilder(config, createAddedHeaders(config.addHeaders, host));
  const failed = host.metrics.counter("sluice_kafka_records_failed_total", "Records that did not reach Kafka", [
    "filter",
    "reason",
  ]);
  const refuse = (reason: string): void => failed.inc({ filter: host.name, reason });
  /** What a filter behind a jumpIf may take as headers: it says why it got the packet. */
  function explain(ctx: FilterContext, result: string, topic: string): string {
    const { headerKey, errorKey } = config.mqtt;
    const mapped = headerKey === undefined ? undefined : ctx.data.get(headerKey);
    const error = { error: result, errorTopic: topic, errorFilter: host.name };
    ctx.data.set(errorKey, { ...(typeof mapped === "object" ? mapped : {}), ...error });
    return result;
  }

  const sink =
    config.ack === "buffered"
      ? await createBufferedSink(config, host, refuse)
      : createDirectSink(config, { host, cluster: joinCluster(config, host), refuse, explain });

  return {
    handle(ctx): FilterResult | PendingResult {
      const now = clock.now();
      const content = build(ctx, now);
      if (typeof content === "string") {
        refuse(content);
        const { topicKey } = config.mqtt;
        const named = topicKey === undefined ? undefined : ctx.data.get(topicKey);
        return explain(ctx, content, typeof named === "string" ? named : config.topic.default);
      }
      const { topic } = content;
      const taken = sink.take(content, ctx, now);
      if (taken === undefined) return undefined;
      if (typeof taken === "string") return explain(ctx, taken, topic);
      return taken;
    },
    health: () => sink.health(),
    close: () => sink.close(),
  };
}
