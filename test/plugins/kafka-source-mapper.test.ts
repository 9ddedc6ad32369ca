/** A record is given up for what it is, not for what the machine was doing meanwhile. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { createMapper, type SourceRecord } from "../../plugins/kafka/source-mapper.ts";
import type { SourceConfig } from "../../plugins/kafka/source-config.ts";

const mqtt = { topic: "t/{{ value.id }}", qos: 1, retain: false, properties: {}, userProperties: {} };

function mapperOf(options: object): ReturnType<typeof createMapper> {
  return createMapper({ mqtt: { ...mqtt, ...options }, maxPayloadBytes: 1_000_000 } as unknown as SourceConfig);
}

/** While its value is read, another process has its turn for so long. */
function slowRecord(ms: number): SourceRecord {
  const value = Buffer.from('{"id":1}');
  value.toString = () => {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
    return '{"id":1}';
  };
  return { topic: "in", partition: 0, offset: 0n, timestamp: 0, key: null, value, headers: {} };
}

test("a rendering that a busy machine interrupts is none that fails", () => {
  const map = mapperOf({ topic: "{{ value.id }}{{ value.id }}/{{ topic }}" });
  const mapped = map(slowRecord(120));
  assert.equal("message" in mapped ? mapped.message.topic : mapped.detail, "11/in");
});

test("a template that takes too long is given up", () => {
  const map = mapperOf({ topic: "{% for i in (1..100000) %}{% for j in (1..100000) %}{% endfor %}{% endfor %}" });
  const mapped = map(slowRecord(0));
  assert.equal("reason" in mapped ? mapped.reason : mapped.message.topic, "template");
});
