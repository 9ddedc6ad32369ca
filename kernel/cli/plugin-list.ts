/** `sluice plugin list`. */
import type { Installed } from "../installed-plugins.ts";
import { columns } from "./columns.ts";
import type { Cli, SubcommandOptions } from "./main.ts";
import { withPlugins } from "./plugin-io.ts";
import { count } from "./report.ts";

interface Listed {
  readonly kind: string;
  readonly family: string;
  readonly package: string;
  readonly version: string;
  /** The range of plugin API versions that it works with. */
  readonly api: string;
  /** `dependencies`, `lock`, `dirs` or `distribution`. */
  readonly from: string;
  /** Documents, and filters as `pipeline/filter`. */
  readonly usedBy: readonly string[];
}

export function list(cli: Cli, options: SubcommandOptions): Promise<number> {
  return withPlugins(cli, "list", options, async ({ installed }) => {
    const listed = listedKinds(installed);
    const problems = installed.registry.problems();
    if (options["json"] === true) {
      cli.stdout.write(`${JSON.stringify({ kinds: listed, problems }, undefined, 2)}\n`);
      return 0;
    }
    const rows = listed.map((each) => [
      each.kind,
      each.family,
      each.package,
      each.version,
      each.api,
      each.from,
      each.usedBy.join(", ") || "-",
    ]);
    cli.stdout.write(columns(["KIND", "FAMILY", "PACKAGE", "VERSION", "API", "FROM", "USED BY"], rows));
    if (problems.length > 0) {
      cli.stdout.write(`${count(problems.length, "package")} can't be used as it is: sluice plugin doctor\n`);
    }
    return 0;
  });
}

function listedKinds({ registry, uses }: Installed): Listed[] {
  const plugins = registry.plugins();
  const isAlone = (kind: string): boolean => plugins.filter(({ manifest }) => manifest.kinds.has(kind)).length === 1;
  return plugins
    .flatMap(({ manifest, place }) =>
      [...manifest.kinds].map(([kind, { family }]) => ({
        kind,
        family,
        package: manifest.package,
        version: manifest.version,
        api: manifest.apiRange ?? "",
        from: place.sort,
        usedBy: [...((isAlone(kind) && uses.get(kind)) || []), ...(uses.get(`${manifest.package}#${kind}`) ?? [])],
      })),
    )
    .toSorted((a, b) => (a.kind < b.kind ? -1 : 1));
}
