/** `sluice diff`: what `sluice apply` would do. */
import { parseArgs, styleText } from "node:util";
import { createTwoFilesPatch } from "diff";
import { stringify } from "yaml";
import type { ConfigDocument } from "@sluice/kernel";
import { apiOption, exit, failure, openApi } from "./api.ts";
import { formatPlan, planChange } from "./change.ts";
import type { DocumentChange } from "./change-route.ts";
import { defineCommand } from "./command.ts";
import { readDocumentFiles } from "./input.ts";
import { printable } from "./table.ts";

const help = `Usage: sluice diff -f FILE... [options]

Show what sluice apply of these files would do to a running gateway, and change nothing: the plan, and under it what
differs between the documents as they run and as they would, defaults included. Secrets are ***, before and after. As
that of kubectl its exit code tells whether there is a difference.

Options:
  -f, --file FILE     YAML or JSON, one document or several ("-": standard input); may be given more than once
${apiOption}
  --json              print the API's answer as JSON

Exit codes: 0 no difference, 1 there is one, 2 wrong usage, or refused by the gateway, 3 the gateway can't be reached

Example:
  sluice diff -f mqttproxy.yaml || echo "not what runs"`;

export default defineCommand("show what sluice apply would do", help, async (args, io) => {
  const { values } = parseArgs({
    args,
    options: {
      file: { type: "string", short: "f", multiple: true },
      api: { type: "string" },
      json: { type: "boolean", default: false },
    },
  });
  if (!values.file) throw failure(exit.usage, "sluice diff takes --file. See --help.");
  const api = openApi(values.api, io);
  let result;
  try {
    const body: readonly ConfigDocument[] = await readDocumentFiles(values.file, io);
    result = await planChange(api, { method: "PUT", path: "/objects", body });
  } catch (error) {
    // 1 means a difference here.
    if (error instanceof Error && "exitCode" in error && error.exitCode === exit.refused) {
      throw failure(exit.usage, error.message);
    }
    throw error;
  }
  const text = (): string =>
    [formatPlan(result.plan, io.colors), ...result.changes.map((change) => formatChange(change, io.colors))].join("\n");
  io.stdout.write(values.json ? `${JSON.stringify(result)}\n` : text());
  return result.plan.isEmpty ? 0 : 1;
});

const colorOf: Readonly<Record<string, "green" | "red" | "cyan">> = { "+": "green", "-": "red", "@": "cyan" };

/** As `diff -u` shows two files. */
function formatChange({ kind, name, before, after }: DocumentChange, colors: boolean): string {
  const label = (document: ConfigDocument | null, state: string): string =>
    document ? `${kind} ${name}, ${state}` : "/dev/null";
  const textOf = (document: ConfigDocument | null): string => (document ? stringify(document) : "");
  const patch = createTwoFilesPatch(
    label(before, "as it runs"),
    label(after, "as it would"),
    textOf(before),
    textOf(after),
  );
  return patch
    .split("\n")
    .filter((line) => !/^=+$/.test(line))
    .map((line) => {
      const color = colorOf[line[0] ?? ""];
      return colors && color ? styleText(color, printable(line), { validateStream: false }) : printable(line);
    })
    .join("\n");
}
