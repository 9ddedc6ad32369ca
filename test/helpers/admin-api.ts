/** The AdminAPI service on a free port, over a test host. */
import type { TestContext } from "node:test";
import adminApi from "../../plugins/admin-api/index.ts";
import type { Config } from "../../plugins/admin-api/index.ts";
import schema from "../../plugins/admin-api/schema.json" with { type: "json" };
import type { Host, Service } from "../../kernel/plugin.ts";
import { createTestHost, type TestHost } from "@sluice/testkit";

/** What the config gives an AdminAPI without options, but for the port. */
export const defaults: Config = {
  host: schema.properties.host.default,
  port: 0,
  maxBodyBytes: schema.properties.maxBodyBytes.default,
  maxPublishes: schema.properties.maxPublishes.default,
  maxConnections: schema.properties.maxConnections.default,
  allowedHosts: schema.properties.allowedHosts.default,
  keys: schema.properties.keys.default,
  basicAuth: schema.properties.basicAuth.default,
  openRoutes: schema.properties.openRoutes.default,
};

export interface RunningApi extends TestHost {
  readonly url: string;
  readonly port: number;
  readonly service: Service;
  /** A request below /apis/v2. A string or Buffer body goes as it is, anything else as JSON. */
  call(method: string, path: string, body?: unknown, headers?: Record<string, string>): Promise<Answer>;
}

export interface Answer {
  readonly status: number;
  readonly headers: Headers;
  readonly text: string;
  /** The body, parsed as JSON. */
  readonly json: unknown;
}

export async function startAdminApi(
  t: TestContext,
  options: { config?: Partial<Config>; overrides?: Partial<Host> } = {},
): Promise<RunningApi> {
  const testHost = createTestHost({ name: "admin-api", overrides: options.overrides ?? {} });
  const service = await adminApi.create({ ...defaults, ...options.config }, testHost.host);
  t.after(async () => {
    await service.stop?.();
    testHost.close();
  });
  await service.start?.();
  const url = service.health?.().detail ?? "";
  return {
    ...testHost,
    url,
    port: Number(new URL(url).port),
    service,
    async call(method, path, body, headers = {}) {
      const response = await fetch(`${url}/apis/v2${path}`, {
        method,
        headers,
        ...(body !== undefined && {
          body: typeof body === "string" || body instanceof Buffer ? body : JSON.stringify(body),
        }),
      });
      const text = await response.text();
      return {
        status: response.status,
        headers: response.headers,
        text,
        get json(): unknown {
          return JSON.parse(text);
        },
      };
    },
  };
}
