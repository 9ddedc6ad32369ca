/** The store in memory, without and with a journal. */
import { createMemoryStore } from "../../kernel/memory-store.ts";
import { createTestHost } from "../helpers/host.ts";
import { storeContract } from "../helpers/store-contract.ts";

storeContract(async () => {
  const { host, close } = createTestHost();
  const store = createMemoryStore({
    node: { id: "n", incarnation: "1" },
    log: host.log,
    metrics: host.metrics,
    now: Date.now,
  });
  await store.start();
  close();
  return store;
});
