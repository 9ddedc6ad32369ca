#!/usr/bin/env node
/** `npm create sluice-plugin [name] -- [--filter | --service] [--kind Name]`: asks on a terminal for what is not given. */
import { relative, resolve } from "node:path";
import { createInterface } from "node:readline/promises";
import { parseArgs } from "node:util";
import { baseOf, generate, kindOf, kindProblem, packageNameProblem, type Family } from "./generate.ts";

const usage = `Usage: npm create sluice-plugin [name] -- [options]

Makes a folder with a plugin for the Sluice MQTT gateway.

  --filter       a filter: a step of a pipeline, which sees packets (if neither is given)
  --service      a service: runs beside the pipelines
  --kind <Name>  what configs call it; made from the package's name if left out
  -h, --help     this text
`;

interface Answers {
  readonly name: string | undefined;
  readonly family: Family | undefined;
}

/** Only on a terminal: elsewhere nobody would answer. */
async function ask({ name, family }: Answers): Promise<Answers> {
  const prompt = createInterface({ input: process.stdin, output: process.stdout });
  try {
    const askedName = name ?? (await prompt.question("Name of the package (such as sluice-stamp): ")).trim();
    if (family) return { name: askedName, family };
    const answer = (await prompt.question("Filter or service? [filter] ")).trim().toLowerCase();
    return { name: askedName, family: answer.startsWith("s") ? "service" : "filter" };
  } finally {
    prompt.close();
  }
}

function readArgs(args: readonly string[]) {
  const flag = { type: "boolean", default: false } as const;
  const options = { filter: flag, service: flag, kind: { type: "string" }, help: { ...flag, short: "h" } } as const;
  return parseArgs({ args: [...args], options, allowPositionals: true });
}

/** Returns the exit code: 0 done, 1 could not be done, 2 wrong usage. */
async function main(args: readonly string[]): Promise<number> {
  const wrong = (why: string): number => {
    process.stderr.write(`${why}\n\n${usage}`);
    return 2;
  };
  let read: ReturnType<typeof readArgs>;
  try {
    read = readArgs(args);
  } catch (error) {
    return wrong((error as Error).message);
  }
  const { values, positionals } = read;
  if (values.help) {
    process.stdout.write(usage);
    return 0;
  }
  if (values.filter && values.service) return wrong("--filter and --service exclude each other");
  if (positionals.length > 1) return wrong(`one name, not ${positionals.length}`);
  const given = {
    name: positionals[0],
    family: values.service ? "service" : values.filter ? "filter" : undefined,
  } as const;
  const isComplete = given.name !== undefined && given.family !== undefined;
  const { name, family = "filter" } = process.stdin.isTTY && !isComplete ? await ask(given) : given;
  if (name === undefined) return wrong("Give the package a name.");
  const kind = values.kind ?? kindOf(name);
  const problem = packageNameProblem(name) ?? kindProblem(kind);
  if (problem !== undefined) return wrong(problem);

  const folder = resolve(baseOf(name));
  try {
    await generate(folder, { name, family, kind });
  } catch (error) {
    process.stderr.write(`${(error as Error).message}\n`);
    return 1;
  }
  const steps = [`cd ${relative(process.cwd(), folder)}`, "npm install", "npm test", "npm run dev"];
  process.stdout.write(
    `${name}: a ${family}, in configs called ${kind}\n\n${steps.map((step) => `  ${step}\n`).join("")}`,
  );
  return 0;
}

process.exitCode = await main(process.argv.slice(2));
