/** A record is given up for what it is, not for what the machine was doing meanwhile. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { createMapper, type SourceRecord } from "../../plugins/kafka/source-mapper.ts";
import type { SourceConfig } from "../../plugins/kafka/source-config.ts";

const mqtt = { topic: "t/{{ value.id }}", qos: 1, retain: false, properties: {}, userProperties: {} };

function mapperOf(options: object): ReturnType<typeof createMapper> {
  return createMapper({ mqtt: { ...mqtt, ...options }, maxPayloadBytes: 1_000_000 } as unknown as SourceConfig);
}

/** Its value takes this long to be read, the first times that it is. */
function slowRecord(times: number, ms: number): SourceRecord {
  const value = Buffer.from('{"id":1}');
  let left = times;
  value.toString = () => {
    const until = performance.now() + (left-- > 0 ? ms : 0);
    while (performance.now() < until);
    return '{"id":1}';
  };
  return { topic: "in", partition: 0, offset: 0n, timestamp: 0, key: null, value, headers: {} };
}

test("a rendering that a busy machine has interrupted is made again", () => {
  const map = mapperOf({ topic: "{{ value.id }}{{ value.id }}/{{ topic }}" });
  const mapped = map(slowRecord(2, 60));
  assert.equal("message" in mapped ? mapped.message.topic : mapped.detail, "11/in");
});

test("a template that never comes to an end in time is given up", () => {
  const map = mapperOf({ topic: "{% for i in (1..100000) %}{% for j in (1..100000) %}{% endfor %}{% endfor %}" });
  const mapped = map(slowRecord(0, 0));
  assert.equal("reason" in mapped ? mapped.reason : mapped.message.topic, "template");
});
