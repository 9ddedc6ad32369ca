/** AdminAPI: the HTTP endpoint of the gateway. */
import type { Host, ServiceKind } from "@sluice/kernel";
import { createApp } from "./app.ts";
import { createOriginCheck } from "./origin.ts";
import { createHttpServer } from "./server.ts";

/** See schema.json, which gives every option its default. */
export interface Config {
  readonly host: string;
  readonly port: number;
  readonly maxBodyBytes: number;
  readonly maxConnections: number;
  readonly allowedHosts: readonly string[];
}

const kind: ServiceKind<Config> = {
  kind: "AdminAPI",
  create(config: Config, host: Host) {
    const app = createApp(host, {
      maxBodyBytes: config.maxBodyBytes,
      checkOrigin: createOriginCheck(config.host, config.allowedHosts),
      isStopping: () => server.isStopping(),
    });
    const answer = app.callback();
    // Koa's promise never rejects: what a handler throws becomes an answer.
    const server = createHttpServer(host, config, (req, res) => void answer(req, res));
    return {
      start: () => server.start(),
      stop: () => server.stop(),
      health() {
        const url = server.url();
        return url === undefined ? { ok: false, detail: "not listening" } : { ok: true, detail: url };
      },
    };
  },
};

export default kind;
