/**
 * Where a partition is taken up. What the group has committed goes before everything; where it has not, the answer must be
 * committed before the first record is handed on: else a crash would look at a topic that has grown, and `from: latest`
 * skip what came in between.
 */
import type { Admin } from "kafkajs";

export interface Start {
  readonly topic: string;
  readonly partition: number;
  readonly offset: bigint;
  readonly isCommitted: boolean;
}

/**
 * @param known topics that were there when the service began: what is new since is read from its first record on
 * @throws what kafkajs does
 */
export async function findStarts(
  admin: Admin,
  group: string,
  assignment: Readonly<Record<string, readonly number[]>>,
  { from, known }: { readonly from: "latest" | "earliest"; readonly known: ReadonlySet<string> },
): Promise<Start[]> {
  const topics = Object.keys(assignment).filter((topic) => (assignment[topic] ?? []).length > 0);
  if (topics.length === 0) return [];
  const committed = await admin.fetchOffsets({ groupId: group, topics });
  const starts: Start[] = [];
  for (const { topic, partitions } of committed) {
    const offsets = new Map(partitions.map(({ partition, offset }) => [partition, BigInt(offset)]));
    const wanted = assignment[topic] ?? [];
    const isNew = wanted.some((partition) => (offsets.get(partition) ?? -1n) < 0n);
    const bounds = isNew ? await admin.fetchTopicOffsets(topic) : [];
    // The group has read others of the topic's partitions: this one is younger than the group.
    const isYounger = !known.has(topic) || [...offsets.values()].some((offset) => offset >= 0n);
    for (const partition of wanted) {
      const offset = offsets.get(partition) ?? -1n;
      const bound = bounds.find((each) => each.partition === partition);
      if (offset >= 0n) starts.push({ topic, partition, offset, isCommitted: true });
      else if (bound) {
        const at = from === "latest" && !isYounger ? bound.high : bound.low;
        starts.push({ topic, partition, offset: BigInt(at), isCommitted: false });
      } else throw new Error(`nothing is known of partition ${partition} of ${topic}`);
    }
  }
  return starts;
}
