/**
 * Easegress, where its binary `easegress-server` (2.x) is given: `--vs easegress=/path/to/easegress-server`. Written for its
 * documented options and config; what has run is a stand-in that takes both (test/fixtures/easegress-stand-in.ts).
 */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { findFreePort } from "../../helpers/free-port.ts";
import { proxyDocuments } from "./documents.ts";
import { listening, type ServerKind, spawnServer } from "./server.ts";

/** Its objects start one by one after its ports are open, and what comes before a pipeline is there is lost. */
const settleMs = 2000;

export function easegress(binary: string): ServerKind {
  return {
    name: "easegress",
    setups: ["broker", "kafka", "mapper", "tls"],
    http: true,
    async start(need) {
      const { folder, setup, identity } = need;
      const [port, api, client, peer] = [
        await findFreePort(),
        await findFreePort(),
        await findFreePort(),
        await findFreePort(),
      ];
      const objects = join(folder, "objects.yaml");
      await writeFile(objects, proxyDocuments(need, port).join("---\n"));
      const peers = `http://127.0.0.1:${peer}`;
      const clients = `http://127.0.0.1:${client}`;
      const args = [
        ["--name", "bench"],
        ["--home-dir", folder],
        ["--api-addr", `127.0.0.1:${api}`],
        ["--cluster-role", "primary"],
        ["--listen-peer-urls", peers],
        ["--initial-advertise-peer-urls", peers],
        ["--initial-cluster", `bench=${peers}`],
        ["--listen-client-urls", clients],
        ["--advertise-client-urls", clients],
        ["--initial-object-config-files", objects],
      ].flat();
      const address = { host: "127.0.0.1", port, ca: setup === "tls" ? identity.cert : undefined };
      const server = await spawnServer(binary, args, address);
      await listening({ host: "127.0.0.1", port: api });
      await sleep(settleMs);
      return {
        ...server,
        http: { host: "127.0.0.1", port: api, path: "/apis/v2/mqttproxy/mqttproxy/topics/publish" },
      };
    },
  };
}
