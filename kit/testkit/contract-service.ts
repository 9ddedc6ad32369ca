/** What a service owes the gateway. */
import { test, type TestContext } from "node:test";
import type { Service, ServiceKind } from "@sluice/kernel";
import { createHost } from "@sluice/kernel/internal";
import { isHealth, leavesNothing, reloads, staysFlat, type Instance, type Workbench } from "./instance.ts";

export function testService(prepare: (t: TestContext) => Promise<Workbench>): void {
  async function build({ kind, options, source }: Workbench): Promise<Instance<Service>> {
    const { host, abort } = createHost(source, "contract", {});
    const it = await (kind as ServiceKind).create(structuredClone(options), host);
    return {
      it,
      async close() {
        await it.stop?.();
        abort();
      },
    };
  }

  test("stop leaves no timer, socket, file or listener behind", async (t) => {
    const bench = await prepare(t);
    await leavesNothing(t, async () => {
      const { it, close } = await build(bench);
      await it.start?.();
      isHealth(it.health?.());
      await close();
    });
  });

  test("it can be stopped without having been started, as when the change of a config is given up", async (t) => {
    const bench = await prepare(t);
    await leavesNothing(t, async () => (await build(bench)).close());
  });

  test(`${reloads} reloads leave the heap flat`, async (t) => {
    const bench = await prepare(t);
    // No reload replaces a store: the next one comes with a restart, when the last has been stopped.
    const isStore = (bench.kind as ServiceKind).role === "store";
    await staysFlat(t, async (previous: Instance<Service> | undefined) => {
      if (isStore) await previous?.close();
      const next = await build(bench);
      if (isStore) {
        await next.it.start?.();
        return next;
      }
      if (previous) next.it.adopt?.(previous.it);
      await next.it.start?.();
      await previous?.close();
      return next;
    });
  });
}
