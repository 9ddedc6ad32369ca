/** What filters and services have in common while the contract is tested: how one is built from, and what it may leave. */
import assert from "node:assert/strict";
import type { TestContext } from "node:test";
import type { FilterKind, Health, ServiceKind } from "@sluice/kernel";
import { collectGarbage, usedBytes } from "./heap.ts";
import type { createTestSource } from "./host.ts";
import { trackResources } from "./resources.ts";

export interface Workbench {
  readonly kind: FilterKind | ServiceKind;
  readonly options: unknown;
  readonly source: ReturnType<typeof createTestSource>["source"];
}

export interface Instance<T> {
  readonly it: T;
  /** As the gateway ends it. */
  readonly close: () => Promise<void>;
}

/** Before the heap is measured: the first instances fill caches. */
const warmUps = 20;
export const reloads: number = 100;
/** A hundredth of this for each reload would be a leak of an instance's options, a buffer, a listener. */
const heapLimitBytes = 2 ** 20;

export function isHealth(health: Health | undefined): void {
  if (health === undefined) return;
  assert.equal(typeof health.ok, "boolean");
  assert.doesNotMatch(health.detail ?? "", /\n/, "health's detail is one line");
}

export async function leavesNothing(t: TestContext, work: () => Promise<void>): Promise<void> {
  const tracker = trackResources();
  t.after(() => tracker.close());
  await tracker.run(work);
  assert.deepEqual(await tracker.left(), []);
}

/** No instance is kept by anything, and nothing else grows. */
export async function staysFlat<T extends object>(
  t: TestContext,
  reload: (previous: Instance<T> | undefined) => Promise<Instance<T>>,
): Promise<void> {
  let current: Instance<T> | undefined;
  const instances: WeakRef<T>[] = [];
  for (let n = 0; n < warmUps; n++) current = await reload(current);
  const before = await usedBytes();
  for (let n = 0; n < reloads; n++) {
    current = await reload(current);
    instances.push(new WeakRef(current.it));
  }
  const grown = (await usedBytes()) - before;
  await current?.close();
  current = undefined;
  await collectGarbage();
  const kept = instances.filter((each) => each.deref() !== undefined).length;
  t.diagnostic(`the heap has grown by ${Math.round(grown / 1024)} KiB in ${reloads} reloads`);
  // The engine may hold the one that was used last.
  assert.ok(kept <= 2, `${kept} of ${reloads} instances are still held by something after their close`);
  assert.ok(grown < heapLimitBytes, `the heap has grown by ${grown} bytes in ${reloads} reloads`);
}
