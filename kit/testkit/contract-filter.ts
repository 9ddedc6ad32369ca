/** What a filter owes the gateway. */
import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { inspect } from "node:util";
import type { Filter, FilterContext, FilterKind } from "@sluice/kernel";
import { createHost } from "@sluice/kernel/internal";
import { isHealth, leavesNothing, reloads, staysFlat, type Instance, type Workbench } from "./instance.ts";
import { samplesOf } from "./samples.ts";

/** How long a packet may wait before its deadline passes, and how long the filter may take to give up then. */
const deadlineMs = 200;
const graceMs = 2000;

async function buildFilter({ kind, options, source }: Workbench): Promise<Instance<Filter>> {
  const { host, abort } = createHost(source, "contract/filter", {});
  const it = await (kind as FilterKind).create(structuredClone(options), host);
  return {
    it,
    async close() {
      await it.close?.();
      abort();
    },
  };
}

/** Error classes that tell of a mistake in the code, or of a packet that was not checked: the same packet fails again. */
const mistakes = [TypeError, SyntaxError, RangeError, ReferenceError, assert.AssertionError] as const;

type Sample = ReturnType<typeof samplesOf>[number];

/** One packet, with a deadline: what the filter returned, or the error that it threw. @param isLate it has passed already */
async function answer(
  filter: Filter,
  sample: Sample,
  o: { readonly clientId?: string; readonly isLate?: boolean } = {},
): Promise<{ result: unknown } | { error: unknown }> {
  const deadline = new AbortController();
  if (o.isLate) deadline.abort();
  const ctx = sample({ clientId: o.clientId ?? "client-1", signal: deadline.signal });
  const settled = Promise.try(async () => filter.handle(ctx)).then(
    (result) => ({ result }),
    (error: unknown) => ({ error }),
  );
  const inTime = await within(deadlineMs, settled);
  if (inTime) return inTime;
  deadline.abort();
  const atLast = await within(graceMs, settled);
  assert.ok(atLast, `a ${ctx.type} is still waited for ${graceMs} ms after ctx.signal has aborted`);
  return atLast;
}

/** Of a packet whose parts can't be read: a failure in the middle of `handle`, wherever the filter looks first. */
function unreadable(ctx: FilterContext): FilterContext {
  const packet = new Proxy(ctx.packet, {
    get() {
      throw new Error("this packet can't be read");
    },
  });
  return { ...ctx, packet } as FilterContext;
}

/** Undefined where it takes longer. */
async function within<T>(ms: number, work: Promise<T>): Promise<T | undefined> {
  const over = new AbortController();
  try {
    return await Promise.race([work, sleep(ms, undefined, { signal: over.signal })]);
  } finally {
    over.abort();
  }
}

/** Why the contract does not allow this answer; undefined where it does. */
function faultOf(kind: FilterKind, outcome: { result: unknown } | { error: unknown }): string | undefined {
  if ("result" in outcome) {
    const { result } = outcome;
    if (result === undefined || (kind.results as readonly unknown[]).includes(result)) return undefined;
    return `it returned ${inspect(result)}, which is not among its results`;
  }
  const { error } = outcome;
  if (!(error instanceof Error)) return `it threw ${inspect(error)}, which is no Error`;
  // A call that failed outside names its cause, as fetch does.
  if (error.cause !== undefined || !mistakes.some((each) => error instanceof each)) return undefined;
  return `it threw ${error.stack}: return a result for what a retry can't mend`;
}

export function testFilter(prepare: (t: TestContext) => Promise<Workbench>): void {
  test("it answers every packet in time: nothing, a declared result, or a fault that a retry can mend", async (t) => {
    const bench = await prepare(t);
    const kind = bench.kind as FilterKind;
    const { it, close } = await buildFilter(bench);
    t.after(close);
    for (const type of kind.packets) {
      // At once, as from as many devices.
      const faults = samplesOf(type).map(async (sample, n) => {
        const fault = faultOf(kind, await answer(it, sample, { clientId: `device-${n}` }));
        return fault === undefined ? [] : [`the ${type} number ${n} of the samples: ${fault}`];
      });
      assert.deepEqual((await Promise.all(faults)).flat(), []);
    }
  });

  test("it gives up a packet whose deadline has passed before it began", async (t) => {
    const bench = await prepare(t);
    const { it, close } = await buildFilter(bench);
    t.after(close);
    for (const type of (bench.kind as FilterKind).packets) await answer(it, samplesOf(type)[0]!, { isLate: true });
  });

  test("a fault is one packet's: the next one is answered as if it had not been", async (t) => {
    const bench = await prepare(t);
    for (const type of (bench.kind as FilterKind).packets) {
      const [sample] = samplesOf(type);
      const fresh = await buildFilter(bench);
      const expected = await answer(fresh.it, sample!);
      await fresh.close();
      const { it, close } = await buildFilter(bench);
      t.after(close);
      await answer(it, (given) => unreadable(sample!(given)));
      const after = await answer(it, sample!);
      const isAsBefore = "error" in after === "error" in expected;
      assert.ok(isAsBefore, `after a ${type} that could not be read, a sound one has ${inspect(after)}`);
    }
  });

  test("close leaves no timer, socket, file or listener behind", async (t) => {
    const bench = await prepare(t);
    await leavesNothing(t, async () => {
      const { it, close } = await buildFilter(bench);
      isHealth(it.health?.());
      for (const type of (bench.kind as FilterKind).packets) await answer(it, samplesOf(type)[0]!);
      await close();
    });
    await leavesNothing(t, async () => (await buildFilter(bench)).close());
  });

  test(`${reloads} reloads leave the heap flat`, async (t) => {
    const bench = await prepare(t);
    await staysFlat(t, async (previous: Instance<Filter> | undefined) => {
      const next = await buildFilter(bench);
      if (previous) {
        next.it.adopt?.(previous.it);
        await previous.close();
      }
      return next;
    });
  });
}
