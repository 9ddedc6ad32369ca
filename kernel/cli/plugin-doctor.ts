/** `sluice plugin doctor`: exits 1 where it finds a problem. */
import { styleText } from "node:util";
import { apiVersion } from "../registry.ts";
import { examinePlugins } from "../plugin-doctor.ts";
import type { Cli, SubcommandOptions } from "./main.ts";
import { withPlugins } from "./plugin-io.ts";
import { count } from "./report.ts";

export function doctor(cli: Cli, options: SubcommandOptions): Promise<number> {
  return withPlugins(cli, "doctor", options, async ({ installed }) => {
    const { registry, folder, path } = installed;
    const findings = await examinePlugins(installed);
    const problems = findings.filter(({ level }) => level === "problem");
    const places = registry.places().map(({ sort, label, folders, missing }) => ({ sort, label, folders, missing }));
    const code = problems.length === 0 ? 0 : 1;
    if (options["json"] === true) {
      const about = { node: process.versions.node, api: apiVersion, folder, config: path };
      cli.stdout.write(`${JSON.stringify({ ...about, places, findings }, undefined, 2)}\n`);
      return code;
    }
    const warn = (text: string): string => (cli.colors ? styleText("yellow", text, { validateStream: false }) : text);
    const lines = [
      `sluice ${cli.version}, plugin API ${apiVersion}, Node.js ${process.versions.node}`,
      `config: ${path ?? `none; its folder would be ${folder}`}`,
      "looked for plugins in",
      // A package.json may be the config's and lie above the gateway too.
      ...new Set(
        places.map(({ label, folders, missing }) => {
          const absent = missing.length === 0 ? "" : `; not installed: ${missing.join(", ")}`;
          return `  ${label}: ${count(folders.length, "package")}${absent}`;
        }),
      ),
      ...findings.map(({ level, message }) => (level === "warning" ? `${warn("warning")}: ${message}` : message)),
      `${count(registry.plugins().length, "plugin")}, ${count(problems.length, "problem")}, ${count(findings.length - problems.length, "warning")}`,
    ];
    cli.stdout.write(`${lines.join("\n")}\n`);
    return code;
  });
}
