import assert from "node:assert/strict";
import { mkdir, mkdtemp, realpath, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { parseSource } from "../../kernel/plugin-source.ts";

let home: string;
before(async () => {
  home = await realpath(await mkdtemp(join(tmpdir(), "sluice-source-")));
  await mkdir(join(home, "stamp"));
  await writeFile(join(home, "stamp-1.0.0.tgz"), "");
  await mkdir(join(home, "folder.tgz"));
});
after(() => rm(home, { recursive: true }));

describe("where a plugin is to come from", () => {
  for (const [written, name, range] of [
    ["stamp", "stamp", undefined],
    ["stamp@1.2.3", "stamp", "1.2.3"],
    ["stamp@^1.2.0", "stamp", "^1.2.0"],
    ["stamp@>=1 <3", "stamp", ">=1 <3"],
    ["stamp@latest", "stamp", "latest"],
    ["@acme/stamp", "@acme/stamp", undefined],
    ["@acme/stamp@next", "@acme/stamp", "next"],
  ] as const) {
    // A folder of that name does not matter, as with npm.
    test(`${written} is a name in the registry`, async () => {
      assert.deepEqual(await parseSource(written, home), { sort: "registry", written, name, range });
    });
  }

  for (const [written, sort, path] of [
    ["./stamp", "folder", "stamp"],
    [".", "folder", ""],
    ["stamp/../stamp-1.0.0.tgz", "tarball", "stamp-1.0.0.tgz"],
    ["stamp-1.0.0.tgz", "tarball", "stamp-1.0.0.tgz"],
    ["file:stamp-1.0.0.tgz", "tarball", "stamp-1.0.0.tgz"],
    ["file:./stamp", "folder", "stamp"],
  ] as const) {
    test(`${written} is a ${sort}`, async () => {
      assert.deepEqual(await parseSource(written, home), { sort, written, path: join(home, path) });
    });
  }

  for (const [written, message] of [
    ["", /"" is no package name, tarball \(x\.tgz\) or folder \(\.\/x\)/],
    ["https://example.com/x.tgz", /download first/],
    ["git+ssh://git@example.com/x.git", /download first/],
    ["user/repo", /no package name/],
    ["npm:left-pad@1", /no package name/],
    ["Upper", /no package name/],
    ["--global", /no package name/],
    ["-g", /no package name/],
    ["x;touch y", /no package name/],
    ["x\ny", /no package name/],
    ["@acme", /no package name/],
    ["x".repeat(215), /no package name/],
    ["x@", /"" of "x@" is no version/],
    ["x@$(touch y)", /is no version: write one such as 1\.2\.3/],
    ["x@file:../y", /is no version/],
    ["x@npm:y", /is no version/],
    ["./not-there", /there is no folder .*not-there/],
    ["not-there.tgz", /there is no file .*not-there\.tgz/],
    ["./folder.tgz", /folder\.tgz is no file/],
  ] as const) {
    test(`${JSON.stringify(written.slice(0, 40))} is none of them`, async () => {
      await assert.rejects(parseSource(written, home), { code: "PLUGIN_SOURCE_INVALID", message });
    });
  }
});
