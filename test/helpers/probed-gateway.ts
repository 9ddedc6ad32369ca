/** A gateway whose pipelines each consist of one filter that the test drives. */
import { randomUUID } from "node:crypto";
import { join } from "node:path";
import type { TestContext } from "node:test";
import type { PacketType, PublishContext } from "../../kernel/plugin.ts";
import { forgetProbe, openProbe, type Probe } from "../fixtures/plugins-e2e/probe/control.ts";
import { startTestGateway, type TestGateway } from "./gateway.ts";

export type { Probe } from "../fixtures/plugins-e2e/probe/control.ts";

export interface ProbeOptions {
  readonly concurrent?: boolean;
  /** Seconds for one run. */
  readonly timeout?: number;
}

export type ProbedGateway<P extends PacketType> = TestGateway & {
  readonly probes: Record<P, Probe>;
  /** Its config with other options of the proxy. */
  readonly yaml: (proxy: object) => string;
};

const pluginsFolder = join(import.meta.dirname, "../fixtures/plugins-e2e");

/** The document that makes test/fixtures/plugins-e2e known. */
export const probeDocument = {
  kind: "Gateway",
  name: "gateway",
  plugins: { dirs: [pluginsFolder] },
  drain: { timeout: 5 },
};

/** Documents as a config file: JSON is YAML. */
export function toYaml(documents: readonly object[]): string {
  return documents.map((document) => JSON.stringify(document, undefined, 2)).join("\n---\n");
}

/**
 * The proxy `mqttproxy` on loopback, and for each packet type named a pipeline of one probe. Stops with the test.
 * @param proxy options of the MQTTProxy
 */
export async function startProbedGateway<P extends PacketType = never>(
  t: TestContext,
  proxy: object = {},
  pipelines: Partial<Record<P, ProbeOptions>> = {},
  extra: readonly object[] = [],
): Promise<ProbedGateway<P>> {
  const types = Object.keys(pipelines) as P[];
  const names = new Map(types.map((type) => [type, `${type}-${randomUUID()}`]));
  const yaml = (options: object): string =>
    toYaml([
      probeDocument,
      {
        kind: "MQTTProxy",
        name: "mqttproxy",
        host: "127.0.0.1",
        port: 0,
        rules: types.map((type) => ({ when: { packetType: type }, pipeline: `on-${type}` })),
        ...options,
      },
      ...types.map((type) => {
        const { concurrent = false, timeout = 30 } = pipelines[type] ?? {};
        const kind = concurrent ? "ConcurrentProbe" : "Probe";
        return {
          kind: "Pipeline",
          name: `on-${type}`,
          timeout,
          filters: [{ name: "probe", kind, probe: names.get(type) }],
        };
      }),
      ...extra,
    ]);
  const gateway = await startTestGateway(yaml(proxy));
  t.after(async () => {
    await gateway.stop();
    for (const name of names.values()) forgetProbe(name);
  });
  const probes = Object.fromEntries([...names].map(([type, name]) => [type, openProbe(name)])) as unknown as Record<
    P,
    Probe
  >;
  return { ...gateway, probes, yaml };
}

/** The PUBLISHes that a probe has seen. */
export function publishes(probe: Probe): PublishContext[] {
  return probe.seen.filter((ctx) => ctx.type === "Publish");
}
