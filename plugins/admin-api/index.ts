/** AdminAPI: the HTTP endpoint of the gateway. */
import type { Host, Service, ServiceKind } from "@sluice/kernel";
import { createApp } from "./app.ts";
import { checkCredentials, createAuthenticator } from "./credentials.ts";
import type { CredentialOptions } from "./credentials.ts";
import type { DoorOptions } from "./door.ts";
import { createOriginCheck } from "./origin.ts";
import { createHttpServer } from "./server.ts";
import type { HttpServer } from "./server.ts";

/** See schema.json, which gives every option its default. */
export interface Config extends DoorOptions, CredentialOptions {
  readonly openRoutes: readonly string[];
  readonly maxBodyBytes: number;
  readonly maxPublishes: number;
  readonly allowedHosts: readonly string[];
}

/** What one AdminAPI shows to the one that replaces it. */
interface AdminService extends Service {
  readonly server: HttpServer;
}

const kind: ServiceKind<Config> = {
  kind: "AdminAPI",
  validate: checkCredentials,
  create(config: Config, host: Host): AdminService {
    const app = createApp(host, {
      maxBodyBytes: config.maxBodyBytes,
      maxPublishes: config.maxPublishes,
      checkOrigin: createOriginCheck(config.host, config.allowedHosts),
      authenticator: createAuthenticator(config),
      openRoutes: config.openRoutes,
      isEnding: () => server.isEnding(),
    });
    const answer = app.callback();
    // Koa's promise never rejects: what a handler throws becomes an answer.
    const server = createHttpServer(host, config, (req, res) => void answer(req, res));
    return {
      server,
      // The kernel only hands over services of the same kind.
      adopt: (previous) => server.adopt((previous as AdminService).server),
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
