/** The store of a cluster over the engine in memory: what every store must do, on one node. */
import { createClusterStore } from "../../kernel/cluster-store.ts";
import { createTestHost } from "@sluice/testkit";
import { createMemoryCluster } from "../helpers/memory-engine.ts";
import { storeContract } from "../helpers/store-contract.ts";

storeContract(
  async () => {
    const { host, close } = createTestHost();
    const node = createMemoryCluster({ shards: 1 }).join("n");
    const store = createClusterStore({ engine: node.engine, log: host.log, metrics: host.metrics, now: Date.now });
    await store.start();
    close();
    return store;
  },
  { keeps: "log" },
);
