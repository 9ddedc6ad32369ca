/** Whether the encoder of fast-produce.ts writes the same bytes as kafkajs' own: asked at each start, before it is used. */
import { RecordGroup, type ProduceArgs, type Protocol } from "./fast-produce.ts";
import { toMessage } from "./parcel.ts";
import { boundOf, type BatchRecord } from "./record-batch.ts";

/** Of Produce: what kafkajs knows and brokers of today speak. */
const versions = [3, 7];
const time = 1_764_000_000_000;

/** Every kind of length, text and time that the two could write in different ways. */
function sampleRecords(): BatchRecord[] {
  const texts = ["", "a", "plant/line 7", "größe", "温度", "😀", "x".repeat(63), "y".repeat(64), "ü".repeat(70)];
  const values = [0, 1, 63, 64, 127, 128, 8100, 8192, 70_000].map((length) => Buffer.alloc(length, length & 255));
  return values.map((bytes, index) => {
    const key = index === 1 ? null : (texts[index] ?? "");
    const value = index === 2 ? null : bytes;
    const headers = texts
      .slice(0, index)
      .flatMap((text) => [`name ${text}`, index % 2 === 0 ? text : Buffer.from(text)]);
    const timestamp = time + [0, 1, 63, 64, 8191, 8192, 2 ** 29, 2 ** 30, 2 ** 33].toReversed()[index]!;
    return { key, value, headers, timestamp, bytes: boundOf(key, value, headers) };
  });
}

function sampleRequests(compression: number): ProduceArgs[] {
  const records = sampleRecords();
  const groupOf = (among: readonly BatchRecord[]): RecordGroup => {
    const group = new RecordGroup();
    group.records.push(...among);
    return group;
  };
  const partition = (id: number, firstSequence: number, among: readonly BatchRecord[]) => ({
    partition: id,
    firstSequence,
    messages: groupOf(among),
  });
  const topicData = [
    { topic: "one", partitions: [partition(0, 0, records), partition(11, 2 ** 31 - 1, records.slice(0, 1))] },
    { topic: "two", partitions: [partition(3, 70_000, records.slice(3).toReversed())] },
  ];
  const terms = { timeout: 10_000, compression, topicData };
  return [
    { ...terms, acks: 1, producerId: -1, producerEpoch: 0 },
    { ...terms, acks: -1, producerId: "9007199254740993", producerEpoch: 32_767 },
  ];
}

/** The same request, as kafkajs would have been given it. */
function plain(args: ProduceArgs): ProduceArgs {
  const topicData = args.topicData.map(({ topic, partitions }) => ({
    topic,
    partitions: partitions.map((each) => ({
      ...each,
      messages: each.messages instanceof RecordGroup ? each.messages.records.map(toMessage) : each.messages,
    })),
  }));
  return { ...args, topicData };
}

/** @returns what differs; undefined = the encoder may be used */
export async function checkEncoder(protocol: Protocol, compression: number): Promise<string | undefined> {
  for (const version of versions) {
    for (const args of sampleRequests(compression)) {
      const { request } = protocol({ version })(args);
      const own = (await request.encode()).buffer;
      const theirs = (await protocol({ version })(plain(args)).request.encode()).buffer;
      if (own.equals(theirs)) continue;
      const at = own.findIndex((byte, index) => byte !== theirs[index]);
      return `version ${version}, compression ${compression}: byte ${at} differs`;
    }
  }
  return undefined;
}
