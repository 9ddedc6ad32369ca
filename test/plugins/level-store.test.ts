/** LevelStore: the contracts of a journal and of a lasting store, through the kind as the kernel makes it. */
import assert from "node:assert/strict";
import { mkdtemp, readdir, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { createMemoryStore } from "../../kernel/memory-store.ts";
import type { Journal, Service } from "../../kernel/plugin.ts";
import type { Store } from "../../kernel/store.ts";
import kind from "../../plugins/level-store/index.ts";
import { createTestHost } from "@sluice/testkit";
import { journalContract } from "@sluice/testkit";
import { lastingStoreContract, storeContract } from "../helpers/store-contract.ts";

const folders: string[] = [];
after(async () => {
  for (const folder of folders) await rm(folder, { recursive: true, force: true });
});

async function makeFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "sluice-level-"));
  folders.push(folder);
  return folder;
}

async function startService(
  folder: string,
  options: Partial<Parameters<typeof kind.create>[0]> = {},
): Promise<Service & { readonly journal: Journal; stop: () => Promise<void> }> {
  const { host } = createTestHost({ folder });
  const service = await kind.create({ dir: "sessions", fsync: "never", fsyncIntervalMs: 50, ...options }, host);
  await service.start?.();
  assert.ok(service.journal);
  return { ...service, journal: service.journal, stop: async () => service.stop?.() };
}

/** A store on the folder; its journal is closed with it. */
async function startStore(folder: string): Promise<Store> {
  const service = await startService(folder);
  const { host, close } = createTestHost();
  const store = createMemoryStore({
    node: { id: "n", incarnation: "1" },
    journal: service.journal,
    log: host.log,
    metrics: host.metrics,
    now: Date.now,
  });
  await store.start();
  return {
    ...store,
    async stop() {
      await store.stop();
      await service.stop();
      close();
    },
  };
}

journalContract(async () => {
  const folder = await makeFolder();
  let running: Awaited<ReturnType<typeof startService>> | undefined;
  return {
    async open() {
      running = await startService(folder);
      return running.journal;
    },
    close: async () => running?.stop(),
  };
});

storeContract(async () => startStore(await makeFolder()));

lastingStoreContract(async () => {
  const folder = await makeFolder();
  return () => startStore(folder);
});

for (const fsync of ["always", "interval", "never"] as const) {
  test(`fsync: ${fsync}: written before it resolves, and there for the next who opens it`, async () => {
    const folder = await makeFolder();
    const service = await startService(folder, { fsync, fsyncIntervalMs: 5 });
    assert.equal(service.journal.durability, fsync === "always" ? "fsync" : "process");
    for (let n = 0; n < 50; n++) await service.journal.write([{ key: `k${n}`, value: Buffer.from("v") }]);
    await service.stop();
    const again = await startService(folder, { fsync });
    let count = 0;
    for await (const piece of again.journal.read()) count += piece.length;
    assert.equal(count, 50);
    await again.stop();
  });
}

test("a folder that another gateway uses is refused, with what to do", async () => {
  const folder = await makeFolder();
  const first = await startService(folder);
  await assert.rejects(startService(folder), /sessions is in use by another gateway: stop that one, or give each/);
  await first.stop();
  await (await startService(folder)).stop();
});

test("a damaged folder is refused, with what to do, and left as it is", async () => {
  const folder = await makeFolder();
  const service = await startService(folder);
  await service.journal.write([{ key: "a", value: Buffer.from("b") }]);
  await service.stop();
  const dir = join(folder, "sessions");
  const current = join(dir, "CURRENT");
  await writeFile(current, "MANIFEST-999999\n");
  const before = (await readdir(dir)).filter((file) => file.startsWith("MANIFEST") || file.endsWith(".log"));
  await assert.rejects(startService(folder), /sessions.*(damaged|No such file|CURRENT)/);
  const left = await readdir(dir);
  assert.ok(
    before.every((file) => left.includes(file)),
    left.join(" "),
  );
});

test("the folder is for its owner alone: payloads are in it", async () => {
  const folder = await makeFolder();
  const service = await startService(folder);
  assert.equal((await stat(join(folder, "sessions"))).mode & 0o077, 0);
  await service.stop();
});

test("a folder that can't be made is an error that names it", async () => {
  const folder = await makeFolder();
  await writeFile(join(folder, "sessions"), "a file");
  await assert.rejects(startService(folder), /sessions/);
});
