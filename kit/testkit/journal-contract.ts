/**
 * What every journal must do, whoever makes it: call it with a way to make one; it registers its tests with node:test.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { Journal, JournalEntry } from "@sluice/kernel";

/** A place that outlives its journal. `open` is only called once the journal before has been closed. */
export interface JournalPlace {
  open(): Promise<Journal>;
  close(): Promise<void>;
}

/** @param make a new, empty place; what it leaves behind is the caller's to remove */
export function journalContract(make: () => Promise<JournalPlace>): void {
  const put = (key: string, value: string | Buffer): JournalEntry => ({ key, value: Buffer.from(value) });
  const gone = (key: string): JournalEntry => ({ key, value: undefined });

  async function contents(journal: Journal): Promise<Record<string, string>> {
    const found: Record<string, string> = {};
    for await (const piece of journal.read()) {
      for (const { key, value } of piece) {
        assert.equal(key in found, false, `${key} was read twice`);
        found[key] = value.toString("base64");
      }
    }
    return found;
  }

  /** What is there for one who opens the place anew. */
  async function written(...batches: (readonly JournalEntry[])[]): Promise<Record<string, string>> {
    const place = await make();
    const journal = await place.open();
    assert.deepEqual(await contents(journal), {}, "a new place is empty");
    for (const batch of batches) await journal.write(batch);
    await place.close();
    const found = await contents(await place.open());
    await place.close();
    return found;
  }

  const base64 = (text: string): string => Buffer.from(text).toString("base64");

  test("what was written is read by the next who opens it: the last value of each key, nothing that was deleted", async () => {
    assert.deepEqual(
      await written(
        [put("a", "1"), put("b", "2"), put("c", "3")],
        [put("a", "4"), gone("b"), gone("never there")],
        [put("b", "5"), gone("c")],
      ),
      { a: base64("4"), b: base64("5") },
    );
  });

  test("keys and values are bytes: U+0000, all of Unicode, keys of 70,000 bytes, values empty and of a megabyte", async () => {
    const keys = ["p\0q\0a/b\u00001", "p\0q", "\u{10ffff}\u{1f600}", "\u0001", "k".repeat(70_000)];
    const large = Buffer.alloc(1024 * 1024, 0xa5);
    const entries = [...keys.map((key) => put(key, Buffer.from([0, 255, 10]))), put("empty", ""), put("large", large)];
    const found = await written(entries);
    assert.deepEqual(Object.keys(found).toSorted(), [...keys, "empty", "large"].toSorted());
    for (const key of keys) assert.equal(found[key], Buffer.from([0, 255, 10]).toString("base64"));
    assert.equal(found.empty, "");
    assert.equal(found.large, large.toString("base64"));
  });

  test("a batch of ten thousand, and twenty thousand to read", async () => {
    const batch = (from: number): JournalEntry[] =>
      Array.from({ length: 10_000 }, (_, n) => put(`key ${from + n}`, `value ${from + n}`));
    const found = await written(batch(0), batch(10_000));
    assert.equal(Object.keys(found).length, 20_000);
    assert.equal(found["key 19999"], base64("value 19999"));
  });

  test("the buffers of a batch may be used anew once it has resolved", async () => {
    const place = await make();
    const journal = await place.open();
    const value = Buffer.from("before");
    await journal.write([{ key: "a", value }]);
    value.write("after!");
    await place.close();
    assert.deepEqual(await contents(await place.open()), { a: base64("before") });
    await place.close();
  });
}
