/** A config that lives in memory: what Host.config promises, without files and without a gateway. */
import { isDeepStrictEqual } from "node:util";
import { SluiceError, configError } from "../../kernel/errors.ts";
import type { ConfigDocument, ConfigResult, HistoryEntry, Host, PlanItem } from "../../kernel/plugin.ts";

export interface MemoryConfig {
  readonly config: Host["config"];
  /** What happens between a caller's look at the config and its change. */
  onApply?: () => Promise<unknown>;
  readOnly: boolean;
}

/** A document with a field `invalid` is one, and a port of 1 can't be bound. */
export function createMemoryConfig(initial: readonly ConfigDocument[]): MemoryConfig {
  let documents = initial;
  let version = 1;
  const versions = new Map([[version, documents]]);
  const history: HistoryEntry[] = [{ version, by: "start", at: 0, changed: [] }];
  const is = (document: ConfigDocument, { kind, name }: { kind?: string; name: string }): boolean =>
    document.name === name && (kind === undefined || document.kind === kind);

  function makeItems(next: readonly ConfigDocument[]): PlanItem[] {
    const items = next.map((document): PlanItem => {
      const { kind, name } = document;
      const old = documents.find((each) => is(each, document));
      const keys = [...new Set([...Object.keys(old ?? {}), ...Object.keys(document)])];
      const fields = old ? keys.filter((key) => !isDeepStrictEqual(old[key], document[key])) : [];
      return { kind, name, action: !old ? "build" : fields.length > 0 ? "change" : "keep", fields, notes: [] };
    });
    const gone = documents.filter((each) => !next.some((document) => is(document, each)));
    return [
      ...items,
      ...gone.map(({ kind, name }): PlanItem => ({ kind, name, action: "drop", fields: [], notes: [] })),
    ];
  }

  async function change(next: readonly ConfigDocument[], by: string, dryRun = false): Promise<ConfigResult> {
    await Promise.resolve();
    const bad = next.filter((document) => "invalid" in document);
    if (bad.length > 0) {
      throw configError(bad.map(({ name }) => ({ where: `${name}.yaml:1:1 > ${name}`, message: "is invalid" })));
    }
    if (memory.readOnly) throw new SluiceError("CONFIG_READ_ONLY", "the config can't be written");
    if (next.some((document) => document["port"] === 1)) throw new SluiceError("LISTEN_FAILED", "port 1 is taken");
    const items = makeItems(next);
    const isEmpty = items.every(({ action }) => action === "keep");
    if (!dryRun && !isEmpty) {
      documents = next;
      versions.set(++version, next);
      const changed = items
        .filter(({ action }) => action !== "keep")
        .map(({ action, kind, name, fields }) =>
          fields.length > 0 ? `${action} ${kind} ${name} (${fields.join(", ")})` : `${action} ${kind} ${name}`,
        );
      history.unshift({ version, by, at: version * 1000, changed });
    }
    return { version, plan: { items, isEmpty }, documents: next, warnings: [] };
  }

  const memory: MemoryConfig = {
    readOnly: false,
    config: {
      documents: () => documents,
      version: () => version,
      async apply({ put = [], remove = [] }, { by, dryRun, ifVersion }) {
        await memory.onApply?.();
        if (ifVersion !== undefined && ifVersion !== version) {
          throw new SluiceError("CONFIG_CONFLICT", `version ${version} runs, not ${ifVersion}`);
        }
        for (const each of remove) {
          if (!documents.some((document) => is(document, each))) {
            throw new SluiceError("CONFIG_NOT_FOUND", `nothing is named "${each.name}"`);
          }
        }
        const left = documents.filter((document) => ![...put, ...remove].some((each) => is(document, each)));
        return change([...left, ...put], by, dryRun);
      },
      history: () => history,
      async rollback(wanted, { by, dryRun, ifVersion }) {
        if (ifVersion !== undefined && ifVersion !== version) {
          throw new SluiceError("CONFIG_CONFLICT", `version ${version} runs, not ${ifVersion}`);
        }
        const earlier = versions.get(wanted);
        if (!earlier) throw new SluiceError("CONFIG_NOT_FOUND", `no version ${wanted} is known`);
        return change(earlier, by, dryRun);
      },
    },
  };
  return memory;
}
