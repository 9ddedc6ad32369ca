/** The plugin API is written down twice, and both are up to date: `UPDATE_DOCS=1 node --test test/e2e/plugin-api.test.ts` writes them anew. */
import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { apiVersion } from "../../kernel/registry.ts";
import { emitApi, parseApi, renderApi } from "../helpers/api-reference.ts";

const root = join(import.meta.dirname, "../..");
const advice = "UPDATE_DOCS=1 node --test test/e2e/plugin-api.test.ts";
/** What has no `@since` has been there from the beginning. */
const first = "1.0.0";

async function isUpToDate(file: string, wanted: (text: string) => string): Promise<void> {
  const path = join(root, file);
  const text = await readFile(path, "utf8");
  if (process.env["UPDATE_DOCS"] === "1") await writeFile(path, wanted(text));
  else assert.equal(text, wanted(text), `${file} is out of date: ${advice}`);
}

test("docs/plugin-api.d.ts is what TypeScript emits", async () => {
  const emitted = await emitApi({ comments: false });
  assert.match(emitted, /export interface Host \{/);
  await isUpToDate("docs/plugin-api.d.ts", () => emitted);
});

test("docs/plugin-api.md explains every type and member of it", async () => {
  const declarations = parseApi(await emitApi({ comments: true }));
  const reference = renderApi(declarations, first);
  await isUpToDate("docs/plugin-api.md", (text) => {
    const at = text.indexOf("<!-- reference of kernel/plugin.ts -->");
    assert.ok(at > 0);
    return `${text.slice(0, at)}<!-- reference of kernel/plugin.ts -->\n\n${reference}\n`;
  });
  // That the parser has missed none: each line of the emitted text that declares something is in it.
  const emitted = await emitApi({ comments: false });
  const names = [...emitted.matchAll(/^(?:export )?(?:interface|type) (\w+)/gm)].map(([, name]) => name);
  assert.deepEqual(
    declarations.map(({ name }) => name),
    names,
  );
  const members = [...emitted.matchAll(/^ {4}(?:readonly )?(\[?\w+)\??[:(]/gm)].map(([, name]) => name);
  const parsed = declarations
    .flatMap((each) => each.members)
    .map(({ code }) => /^(?:readonly )?(\[?\w+)/.exec(code)?.[1]);
  assert.deepEqual(parsed, members);
  assert.ok(members.length > 100);
});

test("a @since is a version of the API that there is", async () => {
  const declarations = parseApi(await emitApi({ comments: true }));
  const numbers = (version: string) =>
    version
      .split(".")
      .map((part) => part.padStart(6, "0"))
      .join(".");
  for (const { name, since, members } of declarations) {
    for (const each of [since, ...members.map((member) => member.since)]) {
      if (each === undefined) continue;
      assert.match(each, /^\d+\.\d+\.\d+$/, name);
      assert.ok(numbers(each) <= numbers(apiVersion), `${name}: @since ${each}, and the API has ${apiVersion}`);
    }
  }
});

test("the page names the version that the gateway has", async () => {
  const text = await readFile(join(root, "docs/plugin-api.md"), "utf8");
  assert.ok(text.includes(`a version of its own: **${apiVersion}**`));
});
