/**
 * Microseconds a match and bytes a subscription: `node --expose-gc test/bench/topics.ts [subscriptions]`. Churn is another
 * client's subscription with a wildcard that comes, or goes, at every 50th match.
 */
import { createTopicIndex } from "../../kernel/topics.ts";

const subscriptions = Number(process.argv[2] ?? 100_000);
const rounds = 300_000;

/** 70 % plain, 15 % with `+`, 10 % with `#`, 5 % shared by many clients. */
function filterOf(i: number): string {
  const share = i % 20;
  if (share < 14) return `fleet/${i % 50}/device/${i}/command`;
  if (share < 17) return `fleet/${i % 50}/device/${i}/+`;
  if (share < 19) return `fleet/${i % 50}/device/${i}/log/#`;
  return `fleet/${i % 50}/news`;
}

// In one piece, as strings that come from a connection are.
const filters = Array.from({ length: subscriptions }, (_, i) => Buffer.from(filterOf(i)).toString());
const keys = filters.map((_, i) => ({ id: i }));
const topics = Array.from({ length: 50_000 }, (_, n) => {
  const i = (n * 7919) % subscriptions;
  return `fleet/${i % 50}/device/${i}/${["command", "state", "log/kernel"][n % 3]}`;
});

/** Matches between two changes. */
const churnEvery = 50;

for (const { cacheSize, isChurn } of [
  { cacheSize: 0, isChurn: false },
  { cacheSize: 100_000, isChurn: false },
  { cacheSize: 100_000, isChurn: true },
]) {
  globalThis.gc?.();
  const before = process.memoryUsage().heapUsed;
  const built = process.hrtime.bigint();
  const index = createTopicIndex<{ id: number }, number>({ prefer: Math.max, cacheSize });
  for (const [i, filter] of filters.entries()) index.set(filter, keys[i] ?? { id: i }, 1);
  const buildUs = Number(process.hrtime.bigint() - built) / 1000 / subscriptions;
  globalThis.gc?.();
  const bytes = (process.memoryUsage().heapUsed - before) / subscriptions;
  let found = 0;
  let changes = 0;
  const change = (): void => {
    const filter = `fleet/${(changes >> 1) % 50}/device/new-${changes >> 1}/#`;
    if (changes++ % 2 === 0) index.set(filter, keys[0]!, 1);
    else index.delete(filter, keys[0]!);
  };
  for (const topic of topics) found += index.match(topic).length;
  if (isChurn) {
    change();
    for (const topic of topics) found += index.match(topic).length;
  }
  const foundBefore = found;
  const start = process.cpuUsage();
  for (let n = 0; n < rounds; n++) {
    if (isChurn && n % churnEvery === 0) change();
    found += index.match(topics[n % topics.length] ?? "").length;
  }
  const { user, system } = process.cpuUsage(start);
  const us = (user + system) / rounds;
  console.log(
    `${subscriptions} subscriptions, cache ${cacheSize}${isChurn ? ", churn" : ""}: build ${buildUs.toFixed(2)} us, ${us.toFixed(2)} us/match, ` +
      `${bytes.toFixed(0)} B/subscription, ${((found - foundBefore) / rounds).toFixed(2)} found a match`,
  );
}
