/** A valid use of each kind that a bundled package provides; a new kind needs its line here. */

const filters: Record<string, object> = {
  ConnectControl: { bannedClients: ["b"] },
  FileMQTT: { topic: { default: "a" } },
  // Port 9 of loopback: nobody there, and nobody needed.
  KafkaMQTT: { backend: ["127.0.0.1:9"], topic: { default: "a" } },
  MQTTClientAuth: { auth: [{ username: "a", saltedSha256Pass: "0".repeat(64) }] },
  TopicMapper: { matchIndex: 0, route: [], policies: [], setKV: { topic: "t", headers: "h" } },
};

const services: Record<string, object> = {
  AdminAPI: { port: 0 },
  KafkaSource: { backend: ["127.0.0.1:9"], group: "g", topics: ["a"], proxy: "proxy", mqtt: { topic: "b" } },
};

/** Of these a config has one at most. */
const stores: Record<string, object> = {
  LevelStore: { dir: "data/sessions" },
  NATSCluster: { servers: ["127.0.0.1:9"] },
};

/**
 * Configs with a use of each of these kinds, as few as can be: JSON documents, which are YAML.
 * @param more of each filter
 */
export function configsOf(kinds: readonly string[], more: object = {}): string[] {
  const used = (of: Record<string, object>, common: object = {}): object[] =>
    kinds.filter((kind) => kind in of).map((kind) => ({ name: kind.toLowerCase(), kind, ...of[kind], ...common }));
  const documents = [
    { kind: "MQTTProxy", name: "proxy", port: 0 },
    { kind: "Pipeline", name: "all", filters: used(filters, more) },
    ...used(services),
  ];
  const unknown = kinds.filter((kind) => !(kind in filters) && !(kind in services) && !(kind in stores));
  if (unknown.length > 0) throw new Error(`no use of ${unknown.join(", ")} is known: add one here`);
  const [first, ...others] = used(stores);
  const toText = (all: readonly (object | undefined)[]): string =>
    all.flatMap((document) => (document ? JSON.stringify(document) : [])).join("\n---\n");
  return [toText([...documents, first]), ...others.map((store) => toText([documents[0], store]))];
}
