import { createMemoryStore } from "../../kernel/memory-store.ts";
import { storeContract } from "../helpers/store-contract.ts";

storeContract(async () => {
  const store = createMemoryStore({ id: "n", incarnation: "1" });
  await store.start();
  return store;
});
