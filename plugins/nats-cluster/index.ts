/** NATSCluster: gateways that share a NATS cluster are one. */
import { hostname } from "node:os";
import type { ServiceKind } from "@sluice/kernel";
import type { ClusterService } from "@sluice/kernel/cluster";
import { type Config, problemsOf } from "./config.ts";
import { createEngine } from "./engine.ts";

const kind: ServiceKind<Config> = {
  kind: "NATSCluster",
  role: "store",
  validate: problemsOf,
  create(config, host): ClusterService {
    const nodeName = config.nodeName === "" ? hostname() : config.nodeName;
    const engine = createEngine(config, { nodeName, log: host.log, metrics: host.metrics, clock: host.clock });
    return {
      cluster: engine,
      start: () => engine.start(),
      stop: () => engine.stop(),
      health() {
        const { live, durable, reasons } = engine.health();
        return { ok: live && durable, detail: reasons.length > 0 ? reasons.join("; ") : `node ${nodeName}` };
      },
    };
  },
};

export default kind;
