/**
 * The records of a produce request, encoded by record-batch.ts in place of kafkajs, which takes some 15 microseconds a
 * record. Everything else of kafkajs stays: connections, metadata, logins, sequence numbers, answers. ADR 0030 tells how
 * it is put in, and what keeps it safe.
 */
import {
  batchHeadBytes,
  boundOfAll,
  timesOf,
  writeHead,
  writeRecords,
  type BatchRecord,
  type BatchTerms,
} from "./record-batch.ts";

/** What of kafkajs' insides is used. They are of 2.2.4, and loaded by client.ts. */
export interface Internals {
  readonly produce: { protocol: Protocol };
  lookupCodec(this: void, type: number): { compress(encoder: { buffer: Buffer }): Promise<Buffer> } | null;
}

/** By version of the request. */
export type Protocol = (wanted: { version: number | string }) => (args: ProduceArgs) => Exchange;

interface Exchange {
  readonly request: ProduceRequest;
  readonly response: ProduceResponse;
}

interface ProduceResponse {
  /** Rejects with the first error of any partition. */
  parse(this: void, answer: Answer): Promise<unknown>;
}

interface Answer {
  readonly topics: readonly {
    readonly partitions: readonly { readonly partition: number; readonly errorCode: number }[];
  }[];
}

interface ProduceRequest {
  readonly apiVersion: number;
  /** kafkajs copies the bytes of `buffer` behind the request's head. */
  encode(): Encoded | Promise<Encoded>;
}

/** What kafkajs takes for its Encoder. */
interface Encoded {
  readonly buf: Buffer;
  readonly buffer: Buffer;
}

export interface ProduceArgs {
  readonly acks: number;
  readonly timeout: number;
  readonly compression?: number | undefined;
  readonly transactionalId?: string | null | undefined;
  /** kafkajs' own -1, or what the broker answered, as text. */
  readonly producerId?: string | number | undefined;
  readonly producerEpoch?: number | undefined;
  readonly topicData: readonly { readonly topic: string; readonly partitions: readonly PartitionData[] }[];
}

interface PartitionData {
  readonly partition: number | string;
  readonly firstSequence?: number | undefined;
  readonly messages: unknown;
}

/**
 * Records for one partition. A class, since its identity tells the requests that are ours from those of others who use
 * the same copy of kafkajs; to kafkajs' own encoder it is a TypeError. kafkajs counts sequence numbers by `length`.
 */
export class RecordGroup {
  readonly records: BatchRecord[] = [];
  get length(): number {
    return this.records.length;
  }
}

/** Batches have the version 2 from here on. */
const minVersion = 3;
/** Of this copy of the module: another one, of an upgraded plugin, has groups of its own. */
const mark = Symbol("encodes record groups");

/** Puts the encoder in front of kafkajs' own, once; requests without record groups pass it by. */
export function installEncoder({ produce, lookupCodec }: Internals): void {
  const { protocol: stock } = produce;
  if (mark in stock) return;
  const protocol: Protocol = ({ version }) => {
    const stockExchange = stock({ version });
    return (args) => {
      const { request, response } = stockExchange(args);
      if (!hasGroups(args)) return { request, response };
      if (request.apiVersion < minVersion) throw new Error(`Kafka is older than 0.11: set encoder to stock`);
      return {
        request: { ...request, encode: () => encode(args, lookupCodec) },
        response: { ...response, parse: (answer) => parse(answer, response) },
      };
    };
  };
  produce.protocol = Object.assign(protocol, { [mark]: true });
}

/** Where a partition has failed, the error says as `stored` which ones have not: a request is for one topic. */
async function parse(answer: Answer, { parse: parseStock }: ProduceResponse): Promise<unknown> {
  try {
    return await parseStock(answer);
  } catch (error) {
    const partitions = answer.topics.flatMap((each) => each.partitions);
    const stored = partitions.filter(({ errorCode }) => errorCode === 0).map(({ partition }) => partition);
    throw error instanceof Error ? Object.assign(error, { stored }) : error;
  }
}

function hasGroups({ topicData }: ProduceArgs): boolean {
  return topicData.some(({ partitions }) => partitions.some(({ messages }) => messages instanceof RecordGroup));
}

/** The body of the request: https://kafka.apache.org/protocol#The_Messages_Produce, versions 3 to 7. */
function encode(args: ProduceArgs, lookupCodec: Internals["lookupCodec"]): Encoded | Promise<Encoded> {
  const { compression = 0 } = args;
  if (compression === 0) return encodeBody(args, (records) => records);
  const codec = lookupCodec(compression);
  if (!codec) throw new Error(`no codec for compression ${compression}`);
  return compressAll(args, async (records) => {
    const { first } = timesOf(records);
    const plain = Buffer.allocUnsafe(boundOfAll(records));
    return codec.compress({ buffer: plain.subarray(0, writeRecords(plain, 0, records, first)) });
  });
}

/** Compresses the groups one after the other, as kafkajs does. */
async function compressAll(
  args: ProduceArgs,
  compress: (records: readonly BatchRecord[]) => Promise<Buffer>,
): Promise<Encoded> {
  const compressed = new Map<readonly BatchRecord[], Buffer>();
  for (const { partitions } of args.topicData) {
    for (const { messages } of partitions) {
      const { records } = messages as RecordGroup;
      compressed.set(records, await compress(records));
    }
  }
  return encodeBody(args, (records) => compressed.get(records) ?? records);
}

/** @param contentOf a group's records, or the bytes that they were compressed to */
function encodeBody(
  args: ProduceArgs,
  contentOf: (records: readonly BatchRecord[]) => readonly BatchRecord[] | Buffer,
): Encoded {
  const { acks, timeout, compression = 0, transactionalId = null, producerId = -1, producerEpoch = 0 } = args;
  const attributes = (compression & 7) | (transactionalId ? 16 : 0);
  const body = Buffer.allocUnsafe(boundOfBody(args, contentOf));
  let end = writeString(body, 0, transactionalId);
  end = body.writeInt16BE(acks, end);
  end = body.writeInt32BE(timeout, end);
  end = body.writeInt32BE(args.topicData.length, end);
  for (const { topic, partitions } of args.topicData) {
    end = writeString(body, end, topic);
    end = body.writeInt32BE(partitions.length, end);
    for (const { partition, firstSequence = 0, messages } of partitions) {
      const { records } = messages as RecordGroup;
      const terms = { attributes, producerId: BigInt(producerId), producerEpoch, firstSequence };
      const start = body.writeInt32BE(Number(partition), end) + 4;
      end = writeBatch(body, start, records, contentOf(records), terms);
      body.writeInt32BE(end - start, start - 4);
    }
  }
  const buffer = body.subarray(0, end);
  return { buf: buffer, buffer };
}

function writeBatch(
  body: Buffer,
  start: number,
  records: readonly BatchRecord[],
  content: readonly BatchRecord[] | Buffer,
  terms: BatchTerms,
): number {
  const first = start + batchHeadBytes;
  const end = Buffer.isBuffer(content)
    ? first + content.copy(body, first)
    : writeRecords(body, first, content, timesOf(content).first);
  writeHead(body, start, end, records, terms);
  return end;
}

function boundOfBody(
  { transactionalId, topicData }: ProduceArgs,
  contentOf: (records: readonly BatchRecord[]) => readonly BatchRecord[] | Buffer,
): number {
  let bound = 2 + (transactionalId?.length ?? 0) * 3 + 2 + 4 + 4;
  for (const { topic, partitions } of topicData) {
    bound += 2 + topic.length * 3 + 4;
    for (const { messages } of partitions) {
      const content = contentOf((messages as RecordGroup).records);
      bound += 8 + batchHeadBytes + (Buffer.isBuffer(content) ? content.length : boundOfAll(content));
    }
  }
  return bound;
}

function writeString(target: Buffer, start: number, text: string | null): number {
  if (text === null) return target.writeInt16BE(-1, start);
  const written = target.write(text, start + 2);
  target.writeInt16BE(written, start);
  return start + 2 + written;
}
