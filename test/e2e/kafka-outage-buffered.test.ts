/** Kafka away while devices go on, in short: `node test/faults/run.ts --outage 600` is the long form. */
import assert from "node:assert/strict";
import { after, test } from "node:test";
import { describeOutage, runOutage } from "../faults/outage.ts";
import { startKafka } from "../helpers/kafka.ts";
import { isLong } from "../helpers/long-test.ts";

const found = await startKafka({ own: true });
after(() => found?.stop());

const outageSeconds = isLong ? 20 : 5;
const rate = 2000;
/** Fields of the heap grow with what is under way to Kafka (16 MiB, 20,000 records), not with what waits on disk. */
const mostMemory = 600e6;

test(
  `Kafka is away for ${outageSeconds} s at ${rate} messages a second, ack: buffered: no device notices, and the buffer drains faster than it fills`,
  { skip: found ? false : "no Kafka", timeout: 180_000 },
  async (t) => {
    assert.ok(found);
    const lines: string[] = [];
    const print = (line: string): void => void lines.push(line);
    const result = await runOutage({ kafka: found, outageSeconds, rate, clients: 50, payloadBytes: 128, print });
    const text = [...lines, describeOutage(result)].join("\n");
    t.diagnostic(text);
    assert.deepEqual([result.missing, result.outOfOrder, result.reconnects], [0, 0, 0], text);
    assert.ok(result.awayRate > 0.9 * rate, text);
    assert.ok(result.backlog > 0.9 * rate * outageSeconds, text);
    assert.ok(result.replayRate > result.arrivalRate, text);
    assert.ok(result.slowestMs.after < 5000, text);
    assert.ok(result.rss.most < mostMemory, text);
  },
);
