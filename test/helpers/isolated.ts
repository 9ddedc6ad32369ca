/** An isolated filter without a gateway around it. */
import { join } from "node:path";
import type { TestContext } from "node:test";
import { inspect } from "../../kernel/isolation.ts";
import type { Filter, PublishContext } from "../../kernel/plugin.ts";
import type { IsolationSpec } from "../../kernel/spec.ts";
import { createPublishContext, createTestHost, type Decision, type TestHost } from "@sluice/testkit";

export const rogueFolder = join(import.meta.dirname, "../fixtures/plugins-isolate");

export function rogueIsolation(kind: string, limits: Partial<IsolationSpec> = {}): IsolationSpec {
  const file = kind.replaceAll(/(?<=[a-z])(?=[A-Z])/g, "-").toLowerCase();
  const entry = join(rogueFolder, `rogue/${file}.js`);
  return {
    source: { kind, family: "filter", package: "sluice-rogue", version: "1.0.0", entry },
    heapMb: 64,
    deadlineMs: 1000,
    maxPackets: 1000,
    maxBytes: 1e6,
    ...limits,
  };
}

export interface Isolated extends TestHost {
  readonly filter: Filter;
  /** Publishes the text; what came of it. A rejection is the filter's. */
  readonly publish: (
    text: string,
    options?: Parameters<typeof createPublishContext>[0],
  ) => Promise<PublishContext & { decision: Decision; result: unknown }>;
}

/** Closed with the test. */
export async function createIsolated(
  t: TestContext,
  kindName = "Rogue",
  limits: Partial<IsolationSpec> = {},
  options: object = {},
  hostOptions: Parameters<typeof createTestHost>[0] = {},
): Promise<Isolated> {
  const config = { onCreate: "", onValidate: "", text: "", ...options };
  const { kind } = await inspect(rogueIsolation(kindName, limits), config);
  const host = createTestHost(hostOptions);
  const filter = await kind.create(config, host.host);
  t.after(async () => {
    await filter.close?.();
    host.close();
  });
  return {
    ...host,
    filter,
    async publish(payload, o) {
      const ctx = createPublishContext({ ...o, payload });
      const result = await filter.handle(ctx);
      return Object.assign(ctx, { result });
    },
  };
}
