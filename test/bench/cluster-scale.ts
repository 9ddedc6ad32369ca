/**
 * A cluster's subscriptions without its clients: the real code for subjects, interest and matching, driven with synthetic
 * subscriptions. `node --expose-gc test/bench/cluster-scale.ts [subscriptions] [nodes]` prints what a node keeps and asks
 * the engine for, and how many nodes get a message that how many want. Ends with 1 where a node that wants one gets none.
 */
import { createTopicIndex, type TopicIndex } from "../../kernel/topics.ts";
import { createSubjectInterest, type SubjectInterest } from "../../plugins/nats-cluster/interest.ts";
import { filterSubject, topicSubject } from "../../plugins/nats-cluster/subjects.ts";
import { createRandom } from "../helpers/random.ts";
import { createSubjectTable, type SubjectTable } from "../helpers/subject-table.ts";

export interface ScaleOptions {
  readonly subscriptions: number;
  readonly nodes: number;
  /** Subjects that a node asks for one by one, as the option `interest.max`. */
  readonly maxInterest: number;
  readonly messages: number;
  readonly seed: number;
}

export interface ScaleResult {
  readonly perNode: { readonly subscriptions: number; readonly subjects: number };
  /** Bytes of heap a subscription. */
  readonly bytes: { readonly index: number; readonly interest: number };
  /** CPU microseconds. */
  readonly us: { readonly add: number; readonly match: number; readonly subject: number };
  /** Nodes a message, on average. */
  readonly wanted: number;
  readonly sent: number;
  /** Messages that a node wanted and would not have got: none, or something is wrong. */
  readonly missed: number;
}

/**
 * Each client has a topic of its own; one in ten also listens to its site, one in a hundred is a console with wildcards.
 * Clients connect where they please: the sites are spread over all nodes.
 */
function filterOf(i: number): string {
  const site = i % 997;
  const kind = i % 100;
  if (kind === 0) return `site/${site}/device/+/alarm`;
  if (kind === 1) return `site/${site}/#`;
  if (kind < 12) return `site/${site}/news`;
  return `site/${site}/device/${i}/command`;
}

function topicOf(i: number, n: number): string {
  const site = i % 997;
  if (n % 10 === 0) return `site/${site}/news`;
  return `site/${site}/device/${i}/${n % 10 === 1 ? "alarm" : "command"}`;
}

export function simulate({ subscriptions, nodes, maxInterest, messages, seed }: ScaleOptions): ScaleResult {
  const random = createRandom(seed);
  const filters = Array.from({ length: subscriptions }, (_, i) => Buffer.from(filterOf(i)).toString());
  const homes = Uint16Array.from(filters, () => random(nodes));

  let heap = heapUsed();
  const indexes: TopicIndex<number, number>[] = Array.from({ length: nodes }, () =>
    createTopicIndex<number, number>({ prefer: Math.max, cacheSize: 0 }),
  );
  for (const [i, filter] of filters.entries()) indexes[homes[i]!]!.set(filter, i, 1);
  const indexBytes = (heapUsed() - heap) / subscriptions;

  heap = heapUsed();
  const asked: Set<string>[] = Array.from({ length: nodes }, () => new Set<string>());
  const interests: SubjectInterest[] = asked.map((subjects) =>
    createSubjectInterest({
      max: maxInterest,
      everything: "n.>",
      subscribe(subject) {
        subjects.add(subject);
        return () => subjects.delete(subject);
      },
    }),
  );
  const adding = cpuOf(() => {
    for (const [i, filter] of filters.entries()) interests[homes[i]!]!.add(filterSubject(filter));
  });
  const interestBytes = (heapUsed() - heap) / subscriptions;

  const tables: SubjectTable[] = asked.map((subjects) => createSubjectTable(subjects));
  const topics = Array.from({ length: messages }, (_, n) => topicOf(random(subscriptions), n));
  let subjects: string[] = [];
  const encoding = cpuOf(() => (subjects = topics.map(topicSubject)));
  let [wanted, sent, missed] = [0, 0, 0];
  const matching = cpuOf(() => {
    for (const topic of topics) for (const index of indexes) if (index.match(topic).length > 0) wanted++;
  });
  for (const [n, topic] of topics.entries()) {
    for (const [node, index] of indexes.entries()) {
      const gets = tables[node]!.matches(subjects[n]!);
      if (gets) sent++;
      else if (index.match(topic).length > 0) missed++;
    }
  }
  return {
    perNode: {
      subscriptions: subscriptions / nodes,
      subjects: interests.reduce((sum, { size }) => sum + size, 0) / nodes,
    },
    bytes: { index: indexBytes, interest: interestBytes },
    us: { add: adding / subscriptions, match: matching / messages / nodes, subject: encoding / messages },
    wanted: wanted / messages,
    sent: sent / messages,
    missed,
  };
}

function heapUsed(): number {
  globalThis.gc?.();
  return process.memoryUsage().heapUsed;
}

/** Microseconds. */
function cpuOf(work: () => void): number {
  const before = process.cpuUsage();
  work();
  const { user, system } = process.cpuUsage(before);
  return user + system;
}

if (import.meta.main) {
  const subscriptions = Number(process.argv[2] ?? 1_000_000);
  const nodes = Number(process.argv[3] ?? 25);
  const rows: [name: string, result: ScaleResult][] = [];
  // What one message costs where nodes ask for what they want, and where they ask for everything.
  for (const [name, maxInterest] of [
    ["by interest", 1_000_000],
    ["collapsed", 1000],
  ] as const) {
    rows.push([name, simulate({ subscriptions, nodes, maxInterest, messages: 20_000, seed: 1 })]);
  }
  console.log(`${subscriptions} subscriptions on ${nodes} nodes`);
  for (const [name, { perNode, bytes, us, wanted, sent, missed }] of rows) {
    console.log(
      `${name}: a node has ${Math.round(perNode.subscriptions)} subscriptions and asks for ${Math.round(perNode.subjects)} subjects; ` +
        `heap a subscription ${Math.round(bytes.index)} B index, ${Math.round(bytes.interest)} B interest; ` +
        `${us.add.toFixed(2)} us to add one, ${us.match.toFixed(2)} us a match, ${us.subject.toFixed(2)} us a subject; ` +
        `a message is wanted by ${wanted.toFixed(2)} nodes and sent to ${sent.toFixed(2)}, missed ${missed}`,
    );
  }
  process.exitCode = rows.some(([, { missed }]) => missed > 0) ? 1 : 0;
}
