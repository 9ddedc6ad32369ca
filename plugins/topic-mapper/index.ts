import type { FieldProblem, Filter, FilterKind, Host } from "@sluice/kernel";
import { createMapper, describeUnmapped, isEmpty } from "./mapper.ts";
import type { Config } from "./mapper.ts";
import { patternProblem } from "./pattern.ts";

/** The result for a topic that no policy maps, by Easegress' name. */
const failed = "MQTTTopicMapFailed";

/** An unmapped message is logged at most this often; the counter has them all. */
const warnEveryMs = 60_000;

const noHeaders: Readonly<Record<string, string>> = Object.freeze({});

const kind: FilterKind<Config> = {
  kind: "TopicMapper",
  // Works on Publish; others pass, so that one pipeline can serve several packet types.
  packets: ["Connect", "Publish", "Subscribe", "Unsubscribe", "Disconnect"],
  results: [failed],
  discards: [failed],
  validate,
  create: createFilter,
};
export default kind;

function createFilter(config: Config, host: Host): Filter {
  if (isEmpty(config)) return { handle() {} };
  warnOfOddities(config, host);

  const messages = host.metrics.counter(
    "sluice_topic_mapper_messages_total",
    "Messages that TopicMapper mapped, or found no mapping for",
    ["filter", "outcome"],
  );
  const mapped = messages.with({ filter: host.name, outcome: "mapped" });
  const unmatched = messages.with({ filter: host.name, outcome: "unmatched" });
  const misses = host.metrics
    .counter("sluice_topic_mapper_cache_misses_total", "Topics whose mapping was not in TopicMapper's cache", [
      "filter",
    ])
    .with({ filter: host.name });
  const mapper = createMapper(config, () => misses.inc());
  const topicKey = config.setKV?.topic;
  const headersKey = config.setKV?.headers;
  let warnedAt = -Infinity;
  let unmatchedSince = 0;

  /** A device chooses its topics, so it must not choose how much is logged. */
  function warn(reason: () => string): void {
    unmatchedSince++;
    const now = host.clock.now();
    if (now - warnedAt < warnEveryMs) return;
    host.log.warn(
      { unmatched: unmatchedSince, onUnmatched: config.onUnmatched },
      `a message could not be mapped: ${reason()}`,
    );
    warnedAt = now;
    unmatchedSince = 0;
  }

  return {
    handle(ctx) {
      if (ctx.type !== "Publish") return undefined;
      const found = mapper.map(ctx.packet.topic);
      if (found.topic !== undefined) {
        mapped.inc();
        if (topicKey !== undefined) ctx.data.set(topicKey, found.topic);
        if (headersKey !== undefined) ctx.data.set(headersKey, found.headers);
        return undefined;
      }
      unmatched.inc();
      if (config.onUnmatched === "default") {
        // Left empty on purpose, which a sink tells from a name that nobody filled.
        if (topicKey !== undefined) ctx.data.set(topicKey, undefined);
        if (headersKey !== undefined) ctx.data.set(headersKey, noHeaders);
        return undefined;
      }
      warn(() => describeUnmapped(found));
      if (config.onUnmatched === "discard") return failed;
      throw new Error(`${host.name}: ${describeUnmapped(found)}`);
    },
  };
}

function validate(config: Config): readonly FieldProblem[] {
  const problems: FieldProblem[] = [];
  const policies = new Set(config.policies.map((policy) => policy.name));

  config.route.forEach(({ name, matchExpr }, index) => {
    const problem = patternProblem(matchExpr);
    if (problem !== undefined) problems.push({ field: ["route", index, "matchExpr"], message: problem });
    if (!policies.has(name)) {
      const known = policies.size === 0 ? "there are none" : `the policies are ${[...policies].join(", ")}`;
      problems.push({
        field: ["route", index, "name"],
        message: `no policy is named ${JSON.stringify(name)}, so what this route matches would never be mapped; ${known}`,
      });
    }
  });
  config.policies.forEach((policy, index) => {
    for (const level of Object.keys(policy.headers)) {
      if (/^(0|[1-9]\d*)$/.test(level)) continue;
      const message = "is no level: the keys of headers are whole numbers from 0, the values are the headers' names";
      problems.push({ field: ["policies", index, "headers", level], message });
    }
    policy.route.forEach(({ exprs }, entry) => {
      exprs.forEach((expr, place) => {
        const problem = patternProblem(expr);
        const field = ["policies", index, "route", entry, "exprs", place];
        if (problem !== undefined) problems.push({ field, message: problem });
      });
    });
  });
  if (config.route.length === 0 && config.policies.length > 0) {
    problems.push({
      field: ["route"],
      message:
        "is empty, so no policy is ever reached: add a route for each policy, or leave out the policies to map nothing",
    });
  }
  if (!isEmpty(config) && config.setKV === undefined) {
    problems.push({
      field: ["setKV"],
      message:
        "is missing, so the mapping would reach no later filter: set `topic` and `headers` to the names the sink looks for (its mqtt.topicKey and mqtt.headerKey)",
    });
  }
  return problems;
}

/** What Easegress takes without a word, and so do we, but with one. */
function warnOfOddities(config: Config, host: Host): void {
  const routed = new Set(config.route.map((route) => route.name));
  const seen = new Set<string>();
  for (const { name } of config.policies) {
    if (seen.has(name)) host.log.warn({ policy: name }, "two policies have this name; the last one counts");
    else if (!routed.has(name)) host.log.warn({ policy: name }, "no route names this policy, so it is never used");
    seen.add(name);
  }
}
