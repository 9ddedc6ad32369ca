/** The kinds that the kernel itself provides, and no plugin may. */
import gateway from "./gateway.schema.json" with { type: "json" };
import mqttProxy from "./mqtt-proxy.schema.json" with { type: "json" };
import manifest from "./package.json" with { type: "json" };
import pipeline from "./pipeline.schema.json" with { type: "json" };
import type { KindInfo } from "./plugin.ts";

export type KernelKind = "Gateway" | "MQTTProxy" | "Pipeline";

export const kernelSchemas = { Gateway: gateway, MQTTProxy: mqttProxy, Pipeline: pipeline } as const satisfies Readonly<
  Record<KernelKind, object>
>;

export const kernelKindNames: readonly string[] = Object.keys(kernelSchemas);

export const isKernelKind = (kind: string): kind is KernelKind => Object.hasOwn(kernelSchemas, kind);

/** For listings, beside what `Registry.kinds` has. */
export const kernelKinds: readonly KindInfo[] = Object.entries({
  Gateway: gateway,
  MQTTProxy: mqttProxy,
  Pipeline: pipeline,
}).map(([kind, schema]) => ({
  kind,
  family: "kernel",
  package: manifest.name,
  version: manifest.version,
  description: schema.description,
  schema,
}));
