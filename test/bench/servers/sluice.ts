/** The gateway of this repository, as `sluice run` runs it. */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { spawnGateway } from "../../helpers/spawned-gateway.ts";
import { proxyDocuments } from "./documents.ts";
import { collectGarbage, nodeFlags } from "./node-flags.ts";
import type { ServerKind } from "./server.ts";

const stopTimeoutMs = 15_000;

export const sluice: ServerKind = {
  name: "sluice",
  setups: ["broker", "kafka", "mapper", "tls"],
  http: true,
  async start(need) {
    const file = join(need.folder, "sluice.yaml");
    const documents = [
      ...proxyDocuments(need, 0, "host: 127.0.0.1\n"),
      "kind: AdminAPI\nname: admin-api\nport: 0\n",
      "kind: Gateway\nname: gateway\nlog: { level: warn }\ndrain: { rate: 0 }\n",
    ];
    await writeFile(file, documents.join("---\n"));
    const gateway = await spawnGateway(file, ["--no-watch"], nodeFlags);
    const api = new URL(gateway.api);
    return {
      address: { host: "127.0.0.1", port: gateway.port, ca: need.setup === "tls" ? need.identity.cert : undefined },
      pid: gateway.pid,
      http: { host: api.hostname, port: Number(api.port), path: "/apis/v2/mqttproxy/mqttproxy/topics/publish" },
      collect: () => collectGarbage(gateway.pid),
      async stop() {
        const timer = setTimeout(() => gateway.signal("SIGKILL"), stopTimeoutMs);
        await gateway.stop();
        clearTimeout(timer);
      },
    };
  },
};
