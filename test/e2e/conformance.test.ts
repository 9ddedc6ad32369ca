/** docs/conformance.md: each statement of both specifications once, and for each that is met a test that exists. */
import assert from "node:assert/strict";
import { glob, readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, test } from "node:test";

const root = join(import.meta.dirname, "../..");

/** How many statements each section has; MQTT 5 leaves some numbers out. */
const sections: Record<string, Record<string, number>> = {
  "MQTT 3.1.1": {
    "1.5.3": 3,
    "2.2.2": 2,
    "2.3.1": 7,
    "3.1.0": 2,
    "3.1.2": 24,
    "3.1.3": 11,
    "3.1.4": 5,
    "3.2.0": 1,
    "3.2.2": 6,
    "3.3.1": 12,
    "3.3.2": 3,
    "3.3.4": 1,
    "3.3.5": 2,
    "3.6.1": 1,
    "3.8.1": 1,
    "3.8.3": 3,
    // As it is printed there.
    "3-8.3": 1,
    "3.8.4": 6,
    "3.9.3": 2,
    "3.10.1": 1,
    "3.10.3": 2,
    "3.10.4": 6,
    "3.12.4": 1,
    "3.14.1": 1,
    "3.14.4": 3,
    "4.1.0": 2,
    "4.3.1": 1,
    "4.3.2": 2,
    "4.3.3": 2,
    "4.4.0": 1,
    "4.5.0": 2,
    "4.6.0": 6,
    "4.7.1": 3,
    "4.7.2": 1,
    "4.7.3": 4,
    "4.8.0": 2,
    "6.0.0": 4,
    "7.0.0": 2,
  },
  "MQTT 5": {
    "1.5.4": 3,
    "1.5.5": 1,
    "1.5.7": 1,
    "2.1.3": 1,
    "2.2.1": 5,
    "2.2.2": 1,
    "3.1.0": 2,
    "3.1.2": 30,
    "3.1.3": 12,
    "3.1.4": 6,
    "3.2.0": 2,
    "3.2.2": 22,
    "3.3.1": 13,
    "3.3.2": 20,
    "3.3.4": 10,
    "3.4.2": 3,
    "3.5.2": 3,
    "3.6.1": 1,
    "3.6.2": 3,
    "3.7.2": 3,
    "3.8.1": 1,
    "3.8.3": 5,
    "3.8.4": 8,
    "3.9.2": 2,
    "3.9.3": 2,
    "3.10.1": 1,
    "3.10.3": 2,
    "3.10.4": 6,
    "3.11.2": 2,
    "3.11.3": 2,
    "3.12.4": 1,
    "3.14.0": 1,
    "3.14.1": 1,
    "3.14.2": 4,
    "3.14.4": 3,
    "3.15.1": 1,
    "3.15.2": 3,
    "4.1.0": 2,
    "4.2.0": 1,
    "4.3.1": 1,
    "4.3.2": 5,
    "4.3.3": 13,
    "4.4.0": 2,
    "4.5.0": 2,
    "4.6.0": 6,
    "4.7.0": 1,
    "4.7.1": 2,
    "4.7.2": 1,
    "4.7.3": 4,
    "4.8.2": 6,
    "4.9.0": 3,
    "4.12.0": 7,
    "4.12.1": 2,
    "4.13.1": 1,
    "4.13.2": 1,
    "6.0.0": 4,
  },
};

interface Row {
  readonly ids: readonly string[];
  readonly status: string;
  readonly shown: string;
}

async function readTables(): Promise<Map<string, Row[]>> {
  const text = await readFile(join(root, "docs/conformance.md"), "utf8");
  return new Map(
    text
      .split(/^## /m)
      .slice(1)
      .map((section) => {
        const [title = ""] = section.split("\n", 1);
        const rows = section.split("\n").flatMap((line): Row[] => {
          const cells = line.split(/(?<!\\)\|/).map((cell) => cell.trim());
          const [, statement = "", , status = "", shown = ""] = cells;
          if (!statement.startsWith("[MQTT-")) return [];
          const ids = [...statement.matchAll(/\[MQTT-([\d.-]+)\]/g)].map(([, id = ""]) => id);
          return [{ ids, status, shown }];
        });
        return [title, rows];
      }),
  );
}

const tables = await readTables();

for (const [title, counts] of Object.entries(sections)) {
  describe(title, () => {
    const rows = tables.get(title) ?? [];

    test("each statement is listed once", () => {
      const listed = new Map<string, number>();
      const ids = rows.flatMap((row) => row.ids);
      assert.deepEqual(
        ids.filter((id, index) => ids.indexOf(id) !== index),
        [],
        "listed twice",
      );
      for (const id of ids) {
        const section = id.slice(0, id.lastIndexOf("-"));
        listed.set(section, (listed.get(section) ?? 0) + 1);
      }
      assert.deepEqual(Object.fromEntries(listed), counts);
    });

    test("each is met, by a test that exists, or not applicable, with the reason", async () => {
      const tally = { met: 0, "not applicable": 0, "not met": 0 };
      for (const { ids, status, shown } of rows) {
        assert.ok(status in tally, `${ids.join()}: ${status}`);
        tally[status as keyof typeof tally] += ids.length;
        if (status !== "met") {
          assert.ok(shown.length > 5, `${ids.join()}: why?`);
          continue;
        }
        const [, file = "", name = ""] = /^`([^`]+)`: `([^`]+)`$/.exec(shown) ?? [];
        const source = await readFile(join(root, file), "utf8");
        assert.ok(name !== "" && source.includes(name), `${ids.join()}: no ${name} in ${file}`);
      }
      console.log(
        `${title}: ${Object.entries(tally)
          .map(([status, count]) => `${count} ${status}`)
          .join(", ")}`,
      );
      assert.equal(tally["not met"], 0);
    });
  });
}

test("a statement that a test names is one of the two specifications", async () => {
  const known = new Set([...tables.values()].flat().flatMap(({ ids }) => ids));
  const unknown: string[] = [];
  for await (const file of glob("test/**/*.ts", { cwd: root })) {
    const text = await readFile(join(root, file), "utf8");
    for (const [, id = ""] of text.matchAll(/\[MQTT-(\d[\d.-]*)\]/g))
      if (!known.has(id)) unknown.push(`${file}: ${id}`);
  }
  assert.deepEqual(unknown, []);
});
