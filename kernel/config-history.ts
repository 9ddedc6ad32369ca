/** Which configs have run since the start, with the text of their files: in memory and bounded. */
import type { HistoryEntry, Plan } from "./plugin.ts";

export interface ConfigHistory {
  entries(): readonly HistoryEntry[];
  /** Of the version that runs; undefined before the first. */
  latest(): ReadonlyMap<string, string> | undefined;
  textsOf(version: number): ReadonlyMap<string, string> | undefined;
  /** A version again, as after a change of comments alone, only gets its new texts. @param most entries that are kept */
  record(entry: Recorded, most: number): void;
}

interface Recorded {
  readonly version: number;
  readonly by: string;
  readonly at: number;
  readonly plan: Plan;
  readonly texts: ReadonlyMap<string, string>;
}

export function createConfigHistory(): ConfigHistory {
  let entries: { readonly entry: HistoryEntry; readonly texts: ReadonlyMap<string, string> }[] = [];
  return {
    entries: () => entries.map(({ entry }) => entry),
    latest: () => entries[0]?.texts,
    textsOf: (version) => entries.find(({ entry }) => entry.version === version)?.texts,
    record({ version, by, at, plan, texts }, most) {
      const [first, ...rest] = entries;
      if (first?.entry.version === version) entries = [{ entry: first.entry, texts }, ...rest];
      else entries = [{ entry: { version, by, at, changed: describePlan(plan) }, texts }, ...entries];
      entries = entries.slice(0, most);
    },
  };
}

/** `change MQTTProxy mqttproxy (brokerMode)` of all that is not kept. */
export function describePlan(plan: Plan): string[] {
  return plan.items
    .filter(({ action }) => action !== "keep")
    .map(({ action, kind, name, fields, notes }) => {
      const what = [fields.join(", "), ...notes].filter((each) => each !== "").join("; ");
      return `${action} ${kind} ${name}${what === "" ? "" : ` (${what})`}`;
    });
}
