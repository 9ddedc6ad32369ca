/** What the benchmark reads Kafka with, against what kafkajs reads. */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { connect } from "node:net";
import { after, test } from "node:test";
import { Kafka, logLevel } from "kafkajs";
import { fetchRequest, readFetched } from "../bench/load/fetch.ts";
import { startKafka } from "../helpers/kafka.ts";

const kafka = await startKafka();
after(() => kafka?.stop());

test("a Fetch by hand reads each record once, from the offset asked for", { skip: !kafka }, async () => {
  const topic = `fetch-${randomUUID()}`;
  await kafka!.createTopic(topic, 2);
  const producer = new Kafka({ brokers: kafka!.brokers, logLevel: logLevel.NOTHING }).producer({ idempotent: true });
  await producer.connect();
  const messages = Array.from({ length: 200 }, (_, n) => ({
    key: n % 3 === 0 ? null : `key-${n}`,
    value: `${n} ${"x".repeat(n)}`,
    headers: { clientID: `client-${n}` },
    partition: n % 2,
  }));
  await producer.send({ topic, messages: messages.slice(0, 150) });
  await producer.send({ topic, messages: messages.slice(150) });
  await producer.disconnect();

  const { hostname, port } = new URL(`kafka://${kafka!.brokers[0]}`);
  const socket = connect(Number(port), hostname);
  await once(socket, "connect");
  // In the middle of the first batch of each partition.
  const offsets = new Map([
    [0, 10n],
    [1, 20n],
  ]);
  const values: string[] = [];
  socket.write(fetchRequest(topic, offsets));
  let answer = Buffer.alloc(0);
  while (answer.length < 4 || answer.length < 4 + answer.readInt32BE(0)) {
    const [chunk] = (await once(socket, "data")) as [Buffer];
    answer = Buffer.concat([answer, chunk]);
  }
  socket.destroy();
  readFetched(answer, offsets, (value) => values.push(value.toString()));
  const due = messages.filter(({ partition }, n) => n >= (partition === 0 ? 20 : 40)).map(({ value }) => value);
  assert.deepEqual(values.toSorted(), due.toSorted());
  assert.deepEqual([...offsets.values()], [100n, 100n]);
});

test("an error of Kafka's is one of the reader's", () => {
  const topic = "t";
  const answer = Buffer.alloc(4 + 4 + 4 + 4 + 2 + topic.length + 4 + 4 + 2 + 16 + 4 + 4);
  answer.writeInt32BE(1, 12);
  answer.writeInt16BE(topic.length, 16);
  answer.writeInt32BE(1, 19);
  answer.writeInt16BE(3, 27);
  assert.throws(() => readFetched(answer, new Map([[0, 0n]]), () => undefined), /Kafka's error 3 for partition 0/);
});
