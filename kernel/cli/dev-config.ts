/** A config to try a plugin with, where its author has none: a proxy, and each of its kinds where it belongs. */
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { findPlugins } from "../registry.ts";
import type { KindInfo, PacketType } from "../plugin.ts";

/** Options come from the `examples` of the kind's schema, else its defaults. What can't be loaded is left to be reported. */
export async function makeDevConfig(file: string, plugin: string): Promise<void> {
  const { name } = JSON.parse(await readFile(join(plugin, "package.json"), "utf8")) as { name?: unknown };
  const registry = await findPlugins({ ahead: [plugin], folder: plugin, dirs: [], bins: [] });
  const own = (): KindInfo[] => registry.kinds().filter((each) => each.package === name);
  for (const { kind } of own()) await registry.load(kind).catch(() => undefined);
  const kinds = own();
  await mkdir(dirname(file), { recursive: true });
  await writeFile(file, toYaml(documentsOf(kinds)));
}

function documentsOf(kinds: readonly KindInfo[]): object[] {
  const filters = kinds.filter(({ family }) => family === "filter");
  const services = kinds.filter(({ family }) => family === "service");
  // One that could not be loaded is named all the same, so that its error is shown.
  const handles = (filter: KindInfo, type: PacketType) => filter.packets?.includes(type) ?? type === "Publish";
  const types = (["Connect", "Publish", "Subscribe", "Unsubscribe", "Disconnect"] as const).filter((type) =>
    filters.some((filter) => handles(filter, type)),
  );
  return [
    {
      kind: "MQTTProxy",
      name: "mqttproxy",
      host: "127.0.0.1",
      port: "${SLUICE_MQTT_PORT:-1883}",
      brokerMode: true,
      rules: types.map((packetType) => ({ when: { packetType }, pipeline: packetType.toLowerCase() })),
    },
    ...types.map((type) => ({
      kind: "Pipeline",
      name: type.toLowerCase(),
      filters: filters.filter((filter) => handles(filter, type)).map(useOf),
    })),
    ...services.map(useOf),
  ];
}

function useOf({ kind, schema }: KindInfo): object {
  const { examples } = schema as { examples?: readonly object[] };
  return { name: kind.toLowerCase(), kind, ...examples?.[0] };
}

/** JSON is YAML. */
function toYaml(documents: readonly object[]): string {
  return documents.map((each) => `${JSON.stringify(each, undefined, 2)}\n`).join("---\n");
}
