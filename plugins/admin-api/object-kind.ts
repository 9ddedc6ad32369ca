/** The names that people give to kinds of objects: `MQTTProxy`, `mqttproxy`, `mqtt`, `mp`. The gateway knows them. */
import { exit, failure } from "./api.ts";
import type { Api } from "./api.ts";

interface Resource {
  readonly Kind: string;
  readonly Name: string;
  readonly Aliases: readonly string[];
}

/** The kind as the config writes it. Fails with exit code 2 for a name of none. */
export async function resolveKind(api: Api, given: string): Promise<string> {
  const resources = (await api.request("GET", "/object-api-resources")) as readonly Resource[];
  const wanted = given.toLowerCase();
  const found = resources.find(({ Name, Aliases }) => Name === wanted || Aliases.includes(wanted));
  if (found) return found.Kind;
  const known = resources.map(({ Name, Aliases }) => [Name, ...Aliases].join("|")).join(", ");
  throw failure(exit.usage, `"${given}" is no kind of object: choose one of ${known}`);
}
