/** The contract that the kit tests plugins with: a sound one passes, and each way of breaking it fails the test that is for it. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, realpath, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";

const testkit = fileURLToPath(import.meta.resolve("@sluice/testkit"));
let home: string;
before(async () => {
  home = await realpath(await mkdtemp(join(tmpdir(), "sluice-contract-test-")));
});
after(() => rm(home, { recursive: true, force: true }));

interface Parts {
  readonly schema?: object;
  readonly readme?: string;
  readonly manifest?: object;
  /** JavaScript: what stands in front of the kind, in `create`, in `handle`, in `close`. */
  readonly top?: string;
  readonly create?: string;
  readonly handle?: string;
  readonly close?: string;
}

const option = { description: "Name of a field.", type: "string", default: "device" };
const soundSchema = { type: "object", additionalProperties: false, properties: { field: option } };
const soundReadme = "```yaml\n- name: sample\n  kind: Sample\n  field: from\n```\n";

async function writePlugin(name: string, parts: Parts): Promise<string> {
  const folder = join(home, name.replaceAll(/\W+/g, "-"));
  await mkdir(folder);
  const manifest = {
    name: "sluice-sample",
    version: "1.0.0",
    type: "module",
    engines: { sluice: "^1.0.0" },
    sluice: { kinds: { Sample: { family: "filter", entry: "./index.js", schema: "./schema.json" } } },
    ...parts.manifest,
  };
  const entry = `
import { setTimeout as sleep } from "node:timers/promises";
${parts.top ?? ""}
export default {
  kind: "Sample",
  packets: ["Publish", "Subscribe"],
  results: ["odd"],
  create(options, host) {
    ${parts.create ?? ""}
    const filter = {
      handle(ctx) {
        ${parts.handle ?? 'if (ctx.type === "Publish" && ctx.packet.payload.length === 0) return "odd";'}
      },
      close() { ${parts.close ?? ""} },
    };
    globalThis.built?.push(filter);
    return filter;
  },
};`;
  await writeFile(join(folder, "package.json"), JSON.stringify(manifest));
  await writeFile(join(folder, "schema.json"), JSON.stringify(parts.schema ?? soundSchema));
  await writeFile(join(folder, "README.md"), parts.readme ?? soundReadme);
  await writeFile(join(folder, "index.js"), entry);
  const contract = `import { testPlugin } from ${JSON.stringify(testkit)};\nawait testPlugin(new URL(".", import.meta.url));\n`;
  await writeFile(join(folder, "contract.test.ts"), contract);
  return folder;
}

/** The names of the tests that failed, and everything that was printed. */
async function runContract(
  folder: string,
  pattern: string,
): Promise<{ failed: string[]; passed: number; text: string }> {
  const args = ["--test", "--test-reporter=tap", `--test-name-pattern=${pattern}`, "contract.test.ts"];
  const { NODE_TEST_CONTEXT: _, ...env } = process.env;
  const child = spawn(process.execPath, args, { cwd: folder, env, stdio: ["ignore", "pipe", "pipe"] });
  let text = "";
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding("utf8").on("data", (some: string) => (text += some));
  await once(child, "close");
  const results = [...text.matchAll(/^ *(not )?ok \d+ - (.*)$/gm)];
  // What a failed test is in fails with it.
  const isSuite = (name: string) =>
    name === "Sample" || name.includes("keeps the contract") || name.endsWith(".test.ts");
  const failed = results.filter(([, not, name = ""]) => not && !isSuite(name)).map(([, , name = ""]) => name);
  return { failed, passed: results.length - failed.length, text };
}

test("a plugin that keeps it passes", async () => {
  const { failed, passed, text } = await runContract(await writePlugin("sound", {}), ".");
  assert.deepEqual(failed, [], text);
  assert.ok(passed >= 8);
});

const answers = "answers every packet in time";
const nothing = "close leaves no timer";
const flat = "leave the heap flat";

/** What is wrong -> the parts, the test that has to fail, and what it has to say. */
const broken: Readonly<Record<string, readonly [Parts, string, RegExp]>> = {
  "a README without an example": [
    { readme: "# Sample\n" },
    "accepts what the README shows",
    /no YAML block of .* shows Sample/,
  ],
  "an example that the schema refuses": [
    { readme: soundReadme.replace("from", "[]") },
    "accepts what the README shows",
    /field: must be a string/,
  ],
  "a schema that takes unknown options": [
    { schema: { type: "object", properties: { field: option } } },
    "refuses an option that it does not know",
    /additionalProperties/,
  ],
  "an option without a description": [
    { schema: { ...soundSchema, properties: { field: { type: "string" } } } },
    "describes every option",
    /field/,
  ],
  "a manifest without an API range": [
    { manifest: { engines: {} } },
    "manifest and schemas are sound",
    /engines\.sluice/,
  ],
  "a result that is not declared": [
    { handle: 'return "surprise";' },
    answers,
    /'surprise', which is not among its results/,
  ],
  "a mistake for a fault": [
    { handle: "if (ctx.packet.payload) JSON.parse(ctx.packet.payload);" },
    answers,
    /SyntaxError.*return a result for what a retry can't mend/s,
  ],
  "something thrown that is no Error": [{ handle: 'throw "no";' }, answers, /it threw 'no', which is no Error/],
  "a wait that no deadline ends": [
    { handle: "return new Promise(() => undefined);" },
    answers,
    /still waited for 2000 ms after ctx\.signal has aborted/,
  ],
  "a fault that sticks": [
    {
      top: "let busy = false;",
      handle:
        'if (busy) throw new Error("busy"); busy = true; void ctx.packet.payload; void ctx.packet.packetId; busy = false;',
    },
    "a fault is one packet's",
    /a sound one has .*busy/s,
  ],
  "a timer that nobody clears": [
    { create: "setInterval(() => undefined, 60_000).unref();" },
    nothing,
    /Timeout opened at .*index\.js/,
  ],
  "a server that nobody closes": [
    { top: 'import { createServer } from "node:net";', create: 'createServer().listen(0, "127.0.0.1").unref();' },
    nothing,
    /TCPSERVERWRAP/,
  ],
  "a listener of the process": [{ create: 'process.on("SIGUSR2", () => undefined);' }, nothing, /SIGUSR2/],
  "instances that something keeps": [{ top: "globalThis.built = [];" }, flat, /100 of 100 instances are still held/],
  "memory that grows with each instance": [
    { top: "const kept = [];", create: "kept.push(Buffer.alloc(20_000, 1));" },
    flat,
    /the heap has grown by \d+ bytes/,
  ],
};

describe("what breaks it", { concurrency: 3 }, () => {
  for (const [name, [parts, failing, message]] of Object.entries(broken)) {
    test(`${name} fails`, async () => {
      const { failed, text } = await runContract(await writePlugin(name, parts), failing);
      assert.equal(failed.length, 1, text);
      assert.match(failed[0] ?? "", new RegExp(failing));
      assert.match(text, message);
    });
  }
});
