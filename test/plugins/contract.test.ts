/** The bundled plugins keep the contract that the kit tests strangers' with. */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { testPlugin } from "@sluice/testkit";

const root = join(import.meta.dirname, "../..");
const docs = join(root, "docs");

/** Nobody listens on port 9 of loopback, and nobody needs to. */
const options = {
  KafkaMQTT: { backend: ["127.0.0.1:9"], deliveryTimeoutMs: 100 },
  AdminAPI: { port: 0 },
  // Port 9 of loopback: nobody there.
  NATSCluster: { servers: ["127.0.0.1:9"] },
};

/** Where a plugin is shown that is no filter. */
const pages: Readonly<Record<string, string>> = {
  "admin-api": "http-api.md",
  "level-store": "configuration.md",
  "nats-cluster": "configuration.md",
};

for (const name of readdirSync(join(root, "plugins"))) {
  const readme = join(docs, pages[name] ?? "filters.md");
  await testPlugin(join(root, "plugins", name), { readme, options });
}
