import type { Filter, FilterKind, Host } from "@sluice/kernel";
import { validate } from "./config.ts";
import type { Config } from "./config.ts";
import { keeperOf } from "./hold.ts";
import { openLogs } from "./logs.ts";
import { createLineBuilder } from "./record.ts";

const kind: FilterKind<Config> = {
  kind: "FileMQTT",
  packets: ["Connect", "Publish", "Subscribe", "Unsubscribe", "Disconnect"],
  results: ["getDataFailed", "illegalTopic"],
  // A topic's records are written in the order they came, so a connection's next packet need not wait for the disk.
  concurrent: true,
  validate,
  create: createFilter,
};
export default kind;

function createFilter(config: Config, host: Host): Filter {
  const buildLine = createLineBuilder(config);
  const logs = openLogs(config, host);
  return {
    handle(ctx) {
      const line = buildLine(ctx, host.clock.now());
      return typeof line === "string" ? line : logs.append(line, keeperOf(ctx));
    },
    health: () => logs.health(),
    close: () => logs.close(),
  };
}
