/** Kinds of isolated filters: imported and checked in a thread, where their code will run; what stands for them is here. */
import type { Declaration, Outward } from "./crossing.ts";
import { codes, SluiceError, type Code } from "./errors.ts";
import { createIsolatedFilter } from "./isolated-filter.ts";
import { startThread } from "./isolation-thread.ts";
import { standardImportDeadlineMs } from "./plugin-code.ts";
import type { FieldProblem, FilterKind } from "./plugin.ts";
import type { IsolationSpec } from "./spec.ts";

/**
 * Imports a kind in a thread and has it check `options` there (unless they are undefined), so that nothing of it runs in
 * this one.
 * @throws SluiceError PLUGIN_BROKEN, PLUGIN_DEPENDENCY_MISSING, PLUGIN_START_TIMEOUT
 */
export async function inspect(
  isolation: IsolationSpec,
  options: unknown,
  deadlineMs: number = standardImportDeadlineMs,
): Promise<{ readonly kind: FilterKind; readonly faults: readonly FieldProblem[] }> {
  const { source } = isolation;
  const what = `${source.kind} of the package ${source.package}`;
  const answer = Promise.withResolvers<Outward>();
  const thread = startThread(
    { source, options, importDeadlineMs: deadlineMs },
    { heapMb: isolation.heapMb, deadlineMs },
    answer.resolve,
  );
  const timer = setTimeout(() => thread.end("stuck", ""), deadlineMs);
  const ended = thread.ended.then(({ reason, detail }) => {
    throw reason === "stuck"
      ? new SluiceError("PLUGIN_START_TIMEOUT", `${what} was not imported and checked within ${deadlineMs / 1000} s`)
      : new SluiceError("PLUGIN_BROKEN", `${what} can't be imported and checked: ${detail}`);
  });
  try {
    const { ready, faults = [], failed } = await Promise.race([answer.promise, ended]);
    if (ready) return { kind: standIn(ready, isolation), faults };
    throw new SluiceError(codeOf(failed?.code) ?? "PLUGIN_BROKEN", failed?.message ?? `${what} gave no answer`);
  } finally {
    clearTimeout(timer);
    ended.catch(() => undefined);
    thread.end("closed", "");
  }
}

const codeOf = (code: string | undefined): Code | undefined =>
  code !== undefined && Object.hasOwn(codes, code) ? (code as Code) : undefined;

/** The kind as pipelines and checks see it. */
function standIn(declaration: Declaration, isolation: IsolationSpec): FilterKind {
  return { ...declaration, create: (options, host) => createIsolatedFilter(declaration, isolation, options, host) };
}
