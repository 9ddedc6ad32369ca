/** The uses of a kind that a page shows, and what the gateway makes of one. */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { FilterKind, ServiceKind } from "@sluice/kernel";
import { loadSpec, parseDocuments } from "@sluice/kernel/internal";

/** A filter in a pipeline, or a service's document, as it is written. */
export interface Use {
  readonly kind: string;
  readonly name: string;
  readonly [option: string]: unknown;
}

export interface CheckedUse {
  /** Undefined where there are problems. */
  readonly loaded: { readonly kind: FilterKind | ServiceKind; readonly options: unknown } | undefined;
  /** A line each: what is wrong, without its place. */
  readonly problems: readonly string[];
}

/**
 * Of every YAML block: whole documents, a pipeline, or a list of filters.
 * @throws where a block is not valid YAML
 */
export function findUses(markdown: string, file: string, kind: string): Use[] {
  const uses: Use[] = [];
  for (const [, indent = "", text = ""] of markdown.matchAll(/^( *)```ya?ml\n(.*?)^ *```$/gms)) {
    const block = text.replaceAll(new RegExp(`^${indent}`, "gm"), "");
    const { documents, problems } = parseDocuments(block, { file, cwd: "/", folder: "/", env: process.env });
    if (problems.length > 0) throw new Error(problems.map((each) => `${each.where}: ${each.message}`).join("\n"));
    for (const { value } of documents) uses.push(...usesIn(value).filter((use) => use.kind === kind));
  }
  return uses;
}

function usesIn(value: unknown): Use[] {
  if (Array.isArray(value)) return value as Use[];
  const document = value as Use & { filters?: Use[] };
  return document.kind === "Pipeline" ? (document.filters ?? []) : [document];
}

/** By the way of `sluice check`, with the package in `folder`. */
export async function checkUse(folder: string, family: "filter" | "service", use: Use): Promise<CheckedUse> {
  const temporary = await mkdtemp(join(tmpdir(), "sluice-use-"));
  try {
    const path = join(temporary, "sluice.json");
    const document = family === "service" ? use : { kind: "Pipeline", name: "contract", filters: [use] };
    await writeFile(path, JSON.stringify(document));
    const { spec, problems } = await loadSpec({ path, cwd: temporary, env: {}, bins: [], ahead: [folder] });
    const loaded = family === "service" ? spec?.services[0] : spec?.pipelines[0]?.filters[0];
    return {
      loaded,
      problems: problems.map(({ message, where }) => `${where.split(" > ").slice(2).join(" > ")}: ${message}`),
    };
  } finally {
    await rm(temporary, { recursive: true, force: true });
  }
}
