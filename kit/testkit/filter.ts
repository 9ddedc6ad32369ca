/** Builds a filter as the gateway does: schema with its defaults, then the kind's own check, then `create`. */
import { readFileSync } from "node:fs";
import type { Filter, FilterKind, Host } from "@sluice/kernel";
import { schemaCompiler } from "@sluice/kernel/internal";

/** Path of an option, dotted -> what is wrong with it. */
export type Problems = Readonly<Record<string, string>>;

export interface FilterMaker {
  /** Throws where the options have problems. `options` without `name` and `kind`. */
  build(options: object, host: Host): Promise<Filter>;
  problems(options: object): Problems;
}

/** @param schema of the kind, or its file. */
export function createFilterMaker<C>(kind: FilterKind<C>, schema: object | URL): FilterMaker {
  const validate = schemaCompiler()(
    schema instanceof URL ? (JSON.parse(readFileSync(schema, "utf8")) as object) : schema,
  );

  function check(options: object): { config: C; problems: Problems } {
    const config = structuredClone(options) as C;
    const faults = validate(config).map(({ path, message }) => [path.join("."), message]);
    const found = faults.length > 0 ? [] : (kind.validate?.(config) ?? []);
    const own = found.map(({ field, message }) => [field.join("."), message]);
    return { config, problems: Object.fromEntries([...faults, ...own]) as Problems };
  }

  return {
    problems: (options) => check(options).problems,
    async build(options, host) {
      const { config, problems } = check(options);
      if (Object.keys(problems).length > 0) throw new Error(`the options have problems: ${JSON.stringify(problems)}`);
      return kind.create(config, host);
    },
  };
}
