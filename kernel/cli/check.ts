/** `sluice check`: the way of `sluice run`, stopped before anything is started. */
import { loadSpec } from "../config.ts";
import type { Cli } from "./main.ts";
import { count, problemLine } from "./report.ts";

export async function check(cli: Cli, path: string | undefined): Promise<number> {
  const { spec, problems, warnings } = await loadSpec({ ...cli, ...(path === undefined ? {} : { path }) });
  for (const problem of problems) cli.stdout.write(problemLine(problem, "problem", cli.colors));
  for (const warning of warnings) cli.stdout.write(problemLine(warning, "warning", cli.colors));
  const documents = spec === undefined ? "" : `${spec.path}: ${count(spec.documents.length, "document")}, `;
  cli.stdout.write(`${documents}${count(problems.length, "problem")}, ${count(warnings.length, "warning")}\n`);
  return problems.length === 0 ? 0 : 1;
}
