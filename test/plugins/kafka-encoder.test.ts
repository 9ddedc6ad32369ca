/** KafkaMQTT's own encoder of records: the bytes of kafkajs, records that any consumer reads, and kafkajs' where in doubt. */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, test } from "node:test";
import { createPublishContext } from "@sluice/testkit";
import { compressionType, loadInternals, prepareEncoder } from "../../plugins/kafka/client.ts";
import { crc32c } from "../../plugins/kafka/crc32c.ts";
import { RecordGroup, type ProduceArgs } from "../../plugins/kafka/fast-produce.ts";
import { toMessage } from "../../plugins/kafka/parcel.ts";
import { boundOf, writeRecords, type BatchRecord } from "../../plugins/kafka/record-batch.ts";
import { buildKafka, type BuiltKafka } from "../helpers/kafka-filter.ts";
import { startKafka, type Kafka } from "../helpers/kafka.ts";
import { createRandom } from "../helpers/random.ts";

const found = await startKafka();
const options = { skip: found ? false : "no Kafka", timeout: 60_000 };
after(() => found?.stop());

function kafka(): Kafka {
  assert.ok(found);
  return found;
}

const seed = Number(process.env["SLUICE_TEST_SEED"] ?? 11);
const rounds = process.env["SLUICE_TEST_LONG"] ? 200 : 12;
const alphabets = ["abc/-_.", "\u0000\u007f\u0080 ", "äöüß", "温度センサー", "😀🚀", "\ud800"].map((text) =>
  Array.from(text),
);

function randomText(random: (below: number) => number): string {
  const alphabet = alphabets[random(alphabets.length)] ?? [];
  const length = [0, 1, 5, 30, 62, 63, 64, 65, 127, 128, 300][random(11)] ?? 0;
  return Array.from({ length }, () => alphabet[random(alphabet.length)]).join("");
}

function randomBytes(random: (below: number) => number): Buffer {
  const length = [0, 1, 50, 63, 64, 128, 1000, 8000, 8190, 9000, 70_000][random(random(20) === 0 ? 11 : 7)] ?? 0;
  return Buffer.alloc(length, random(256));
}

function randomRecord(random: (below: number) => number): BatchRecord {
  const headers: (string | Buffer)[] = [];
  // kafkajs has one value for each name, in the order of an object, where whole numbers come first.
  for (let index = random(6); index > 0; index--) {
    headers.push(`${index}: ${randomText(random)}`, random(3) === 0 ? randomBytes(random) : randomText(random));
  }
  const key = [null, randomText(random), randomBytes(random)][random(3)] ?? null;
  const value = random(10) === 0 ? null : randomBytes(random);
  // With as many digits as each other: kafkajs looks for the first one among texts.
  const timestamp = 1_764_000_000_000 + random(2 ** [1, 7, 14, 29, 31, 40][random(6)]!);
  return { key, value, headers, timestamp, bytes: boundOf(key, value, headers) };
}

function randomRequest(random: (below: number) => number, compression: number): ProduceArgs {
  const topicData = Array.from({ length: 1 + random(3) }, () => ({
    topic: `topic-${random(1000)}`,
    partitions: Array.from({ length: 1 + random(4) }, () => {
      const messages = new RecordGroup();
      for (let left = 1 + random(20); left > 0; left--) messages.records.push(randomRecord(random));
      return { partition: random(100), firstSequence: random(2 ** 31), messages };
    }),
  }));
  const isIdempotent = random(2) === 0;
  return {
    acks: [-1, 0, 1][random(3)] ?? 1,
    timeout: random(100_000),
    compression,
    transactionalId: random(5) === 0 ? randomText(random) : undefined,
    producerId: isIdempotent ? String(BigInt(random(2 ** 31)) * 4_294_967_296n + BigInt(random(2 ** 31))) : -1,
    producerEpoch: isIdempotent ? random(2 ** 15) : 0,
    topicData,
  };
}

/** As kafkajs would have been given it. */
function forKafkajs(args: ProduceArgs): ProduceArgs {
  const topicData = args.topicData.map(({ topic, partitions }) => ({
    topic,
    partitions: partitions.map((each) => ({
      ...each,
      messages: (each.messages as RecordGroup).records.map(toMessage),
    })),
  }));
  return { ...args, topicData };
}

for (const compression of ["none", "gzip", "snappy", "lz4", "zstd"] as const) {
  test(`the bytes are those of kafkajs, compression ${compression} (seed ${seed})`, async () => {
    const random = createRandom(seed);
    const type = compressionType(compression);
    assert.equal(await prepareEncoder(type), undefined);
    const { produce } = loadInternals();
    for (let round = 0; round < rounds * (compression === "none" ? 5 : 1); round++) {
      const args = randomRequest(random, type);
      for (const version of [3, 7]) {
        const fast = produce.protocol({ version })(args).request;
        const stock = produce.protocol({ version })(forKafkajs(args)).request;
        assert.equal(fast.apiVersion, stock.apiVersion);
        const [own, theirs] = [await fast.encode(), await stock.encode()];
        assert.ok(own.buffer.equals(theirs.buffer), `round ${round}, version ${version}`);
      }
    }
  });
}

test("a batch that does not fit is an error, not a torn batch", () => {
  const record = { key: "k", value: Buffer.alloc(0), headers: ["a".repeat(50), "b"], timestamp: 0, bytes: 1 };
  assert.throws(() => writeRecords(Buffer.alloc(40), 0, [record], 0), RangeError);
});

test("CRC-32C of what others publish it for", () => {
  // RFC 3720, B.4, and the check value of the catalogue of parametrised CRC algorithms.
  assert.equal(crc32c(Buffer.from("123456789")), 0xe306_9283);
  assert.equal(crc32c(Buffer.alloc(32)), 0x8a91_36aa);
  assert.equal(crc32c(Buffer.alloc(32, 255)), 0x62a8_ab43);
  assert.equal(crc32c(Buffer.from(Array.from({ length: 32 }, (_, index) => index))), 0x46dd_794e);
  const whole = Buffer.from("..123456789.");
  assert.equal(crc32c(whole, 2, 11), 0xe306_9283);
});

/** A variety of packets through the filter; resolves with what should be in Kafka, by payload. */
async function publishVariety({ filter }: BuiltKafka, count: number): Promise<Map<string, object>> {
  const random = createRandom(seed);
  const expected = new Map<string, object>();
  const handled: unknown[] = [];
  for (let index = 0; index < count; index++) {
    const clientId = `${randomText(random)}-${index % 7}`;
    const username = random(2) === 0 ? randomText(random).toWellFormed() : undefined;
    const topic = `t/${randomText(random)
      .replaceAll(/[\0+#]/g, "x")
      .toWellFormed()}`;
    const headers = { [`h${random(3)}`]: randomText(random).toWellFormed() };
    const payload = `${index} ${randomText(random).toWellFormed()}`;
    const id = clientId.toWellFormed();
    const ctx = createPublishContext({ topic, payload, clientId: id, ...(username !== undefined && { username }) });
    ctx.data.set("headers", headers);
    const own = { clientID: id, ...(username === undefined ? {} : { username }), mqttTopic: topic };
    expected.set(payload, { key: id, headers: { ...own, ...headers } });
    handled.push(filter.handle(ctx));
  }
  assert.ok((await Promise.all(handled)).every((result) => result === undefined));
  return expected;
}

async function assertArrived(topic: string, expected: Map<string, object>): Promise<void> {
  const records = await kafka().consume(topic);
  assert.equal(records.length, expected.size);
  for (const { key, value, headers } of records) {
    assert.deepEqual({ key, headers }, expected.get(String(value)), String(value));
  }
}

for (const [index, config] of [
  {},
  { acks: "leader" },
  { encoder: "stock" },
  { compression: "gzip" },
  { compression: "zstd", acks: "leader", inFlight: 4 },
].entries()) {
  test(`a stock consumer reads what was published, with ${JSON.stringify(config)}`, options, async () => {
    const topic = `t-${index}-${randomUUID()}`;
    await kafka().createTopic(topic, 4);
    const mqtt = { headerKey: "headers" };
    const { produce } = loadInternals();
    const { protocol } = produce;
    const sent = new Set<boolean>();
    produce.protocol = (wanted) => {
      const exchange = protocol(wanted);
      return (args) => {
        for (const { topic: name, partitions } of args.topicData) {
          if (name !== topic) continue;
          for (const { messages } of partitions) sent.add(messages instanceof RecordGroup);
        }
        return exchange(args);
      };
    };
    try {
      await using built = await buildKafka({ backend: kafka().brokers, topic: { default: topic }, mqtt, ...config });
      await assertArrived(topic, await publishVariety(built, 700));
      assert.deepEqual(
        built.host.logs.filter(({ level }) => level === "warn"),
        [],
      );
    } finally {
      produce.protocol = protocol;
    }
    assert.deepEqual([...sent], [!("encoder" in config)]);
  });
}

test(
  "where it writes other bytes than kafkajs, kafkajs encodes, a warning says so, and nothing is lost",
  options,
  async () => {
    const internals = loadInternals();
    const { produce } = internals;
    const { protocol } = produce;
    // As if kafkajs had learnt something new: only in version 3, which no broker of today is spoken to in.
    produce.protocol = ({ version }) => {
      const exchange = protocol({ version });
      return (args) => {
        const { request, response } = exchange(args);
        if (version !== 3) return { request, response };
        const encode = async () => {
          const { buffer } = await request.encode();
          const other = Buffer.concat([buffer.subarray(0, -1), Buffer.from([1])]);
          return { buf: other, buffer: other };
        };
        return { request: { ...request, encode }, response };
      };
    };
    try {
      const topic = `t-${randomUUID()}`;
      await kafka().createTopic(topic, 4);
      const mqtt = { headerKey: "headers" };
      await using built = await buildKafka({ backend: kafka().brokers, topic: { default: topic }, mqtt });
      await assertArrived(topic, await publishVariety(built, 500));
      const warnings = built.host.logs.filter(({ level }) => level === "warn");
      assert.equal(warnings.length, 1);
      assert.match(warnings[0]?.message ?? "", /encoded by kafkajs/);
      assert.match(String(warnings[0]?.fields["problem"]), /version 3, compression 0: byte \d+ differs/);
    } finally {
      produce.protocol = protocol;
    }
  },
);

test("another version of kafkajs, or one with other insides, is left as it is", async () => {
  const internals = loadInternals();
  const none = compressionType("none");
  const { protocol } = internals.produce;
  const other = { ...internals, produce: { protocol } };
  assert.match((await prepareEncoder(none, { ...other, version: "2.3.0" })) ?? "", /made for kafkajs 2\.2\.4.*2\.3\.0/);
  assert.equal(other.produce.protocol, protocol);
  const broken = { ...internals, produce: { protocol: () => assert.fail("no such version") } };
  assert.match((await prepareEncoder(none, broken)) ?? "", /no such version/);
});
