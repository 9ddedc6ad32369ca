import type {
  Client,
  ConnectContext,
  FieldProblem,
  Filter,
  FilterKind,
  Host,
  PublishContext,
  SubscribeContext,
} from "@sluice/kernel";
import { RE2JS, RE2JSSyntaxException } from "re2js";
import { createTopicSet, topicFilterProblem, withoutShare } from "./topic-set.ts";

export interface Config {
  readonly bannedClientRe: string;
  readonly bannedClients: readonly string[];
  readonly bannedTopicRe: string;
  readonly bannedTopics: readonly string[];
}

/** The result for a banned client or topic, by Easegress' name. */
const banned = "bannedClientOrTopicError";

const kind: FilterKind<Config> = {
  kind: "ConnectControl",
  // Unsubscribe and Disconnect pass, so that one pipeline can serve all packet types.
  packets: ["Connect", "Publish", "Subscribe", "Unsubscribe", "Disconnect"],
  results: [banned],
  discards: [banned],
  validate,
  create: createFilter,
};
export default kind;

function createFilter(config: Config, host: Host): Filter {
  const clients = new Set(config.bannedClients);
  const topics = createTopicSet(config.bannedTopics);
  const clientPattern = compile(config.bannedClientRe);
  const topicPattern = compile(config.bannedTopicRe);
  /** A client's id doesn't change, so its verdict lasts as long as its connection. */
  const verdicts = new WeakMap<Client, boolean>();
  const refusals = host.metrics.counter(
    "sluice_connect_control_refusals_total",
    "Packets that ConnectControl refused; for Subscribe, topic filters",
    ["filter", "packet"],
  );
  const connects = refusals.with({ filter: host.name, packet: "Connect" });
  const publishes = refusals.with({ filter: host.name, packet: "Publish" });
  const subscriptions = refusals.with({ filter: host.name, packet: "Subscribe" });

  function isBannedClient(client: Client): boolean {
    let verdict = verdicts.get(client);
    if (verdict === undefined) {
      verdict = clients.has(client.id) || (clientPattern?.test(client.id) ?? false);
      verdicts.set(client, verdict);
    }
    return verdict;
  }

  function isBannedTopic(topic: string): boolean {
    return topics.has(topic) || (topicPattern?.test(topic) ?? false);
  }

  function connect(ctx: ConnectContext): string | undefined {
    const { will } = ctx.packet;
    if (isBannedClient(ctx.client)) ctx.reject("banned");
    // Refused now, while there is someone to tell, not when the client is gone.
    else if (will && isBannedTopic(will.topic)) ctx.reject("notAuthorized");
    else return undefined;
    connects.inc();
    return banned;
  }

  function publish(ctx: PublishContext): string | undefined {
    if (isBannedClient(ctx.client)) ctx.disconnect("banned");
    else if (isBannedTopic(ctx.packet.topic)) ctx.disconnect("notAuthorized");
    else return undefined;
    publishes.inc();
    return banned;
  }

  /** Each banned topic filter is refused by itself; the result is for a packet of which nothing is left. */
  function subscribe(ctx: SubscribeContext): string | undefined {
    if (isBannedClient(ctx.client)) {
      subscriptions.inc(ctx.packet.subscriptions.length);
      ctx.disconnect("banned");
      return banned;
    }
    let refused = 0;
    for (const subscription of ctx.packet.subscriptions) {
      const { topicFilter } = subscription;
      if (!topics.meets(topicFilter) && !topicPattern?.test(withoutShare(topicFilter))) continue;
      subscription.refused = true;
      refused++;
    }
    if (refused > 0) subscriptions.inc(refused);
    if (refused === 0 || refused < ctx.packet.subscriptions.length) return undefined;
    ctx.reject("notAuthorized");
    return banned;
  }

  return {
    handle(ctx) {
      switch (ctx.type) {
        case "Connect":
          return connect(ctx);
        case "Publish":
          return publish(ctx);
        case "Subscribe":
          return subscribe(ctx);
        default:
          return undefined;
      }
    },
    health: () => ({ ok: true, detail: status(config) }),
  };
}

function validate(config: Config): readonly FieldProblem[] {
  const problems: FieldProblem[] = [];
  for (const field of ["bannedClientRe", "bannedTopicRe"] as const) {
    const message = patternProblem(config[field]);
    if (message !== undefined) problems.push({ field: [field], message });
  }
  config.bannedTopics.forEach((entry, index) => {
    const message = topicFilterProblem(entry);
    if (message !== undefined) problems.push({ field: ["bannedTopics", index], message });
  });
  return problems;
}

/** An empty expression would match everything; as in Easegress it means that there is none. */
function compile(source: string): RE2JS | undefined {
  return source === "" ? undefined : RE2JS.compile(source);
}

function patternProblem(source: string): string | undefined {
  try {
    compile(source);
    return undefined;
  } catch (error) {
    const syntax = error instanceof RE2JSSyntaxException;
    const why = syntax
      ? `${error.error}${error.input === null ? "" : ` at ${JSON.stringify(error.input)}`}`
      : String(error);
    const advice = "RE2 has no look-around and no back-references, and \\ makes the next character literal";
    return `${JSON.stringify(source)} is not an RE2 expression: ${why}; ${advice}`;
  }
}

function status({ bannedClients, bannedClientRe, bannedTopics, bannedTopicRe }: Config): string {
  const clientRe = bannedClientRe === "" ? "" : ` and /${bannedClientRe}/`;
  const topicRe = bannedTopicRe === "" ? "" : ` and /${bannedTopicRe}/`;
  return `banned clients: ${bannedClients.length}${clientRe}; banned topics: ${bannedTopics.length}${topicRe}`;
}
