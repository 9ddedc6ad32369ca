import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { hash } from "node:crypto";
import { once } from "node:events";
import { PassThrough } from "node:stream";
import { text } from "node:stream/consumers";
import { describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { parse } from "yaml";
import command from "../../plugins/auth/hash.ts";
import kind from "../../plugins/auth/mqtt-client-auth.ts";
import { runCommand, createConnectContext, createFilterMaker, createTestHost } from "@sluice/testkit";

const run = (args: readonly string[], stdin: string | Buffer) => runCommand(command, args, { stdin });

const pageHash = "1bc1a361f17092bc7af4b2f82bf9194ea9ee2ca49eb2e53e39f555bc1eeaed74";

describe("sluice hash", () => {
  test("prints the page's entry for the page's user", async () => {
    const { code, stdout, stderr } = await run(["--salt", "salt", "test"], "test\n");
    assert.deepEqual([code, stderr], [0, ""]);
    assert.deepEqual(parse(stdout), [{ username: "test", saltedSha256Pass: pageHash }]);
  });

  test("--order passwordSalt prints what Easegress takes", async () => {
    const { stdout } = await run(["--order", "passwordSalt", "--salt=salt", "test"], "test");
    assert.deepEqual(parse(stdout), [{ username: "test", saltedSha256Pass: hash("sha256", "testsalt") }]);
  });

  test("leaves out one line end and nothing else", async () => {
    for (const [input, password] of [
      ["pw", "pw"],
      ["pw\n", "pw"],
      ["pw\r\n", "pw"],
      ["pw\n\n", "pw\n"],
      [" p w ", " p w "],
    ] as const) {
      const { stdout } = await run(["u"], input);
      assert.deepEqual(parse(stdout), [{ username: "u", saltedSha256Pass: hash("sha256", password) }]);
    }
  });

  test("takes a password of any bytes", async () => {
    const bytes = Buffer.from([0xff, 0x00, 0xc3]);
    const { stdout } = await run(["u"], bytes);
    assert.deepEqual(parse(stdout), [{ username: "u", saltedSha256Pass: hash("sha256", bytes) }]);
  });

  test("a user name that means something in YAML comes through", async () => {
    for (const username of ["true", "a: b", "- x", 'quo"te', "#1", "null", "1e5", "zoë"]) {
      const { stdout } = await run(["--", username], "pw");
      assert.equal((parse(stdout) as { username: unknown }[])[0]?.username, username);
    }
  });

  test("what it prints opens the filter's door", async (t) => {
    const { host, close } = createTestHost();
    t.after(close);
    const maker = createFilterMaker(kind, new URL("../../plugins/auth/mqtt-client-auth.schema.json", import.meta.url));
    for (const order of ["saltPassword", "passwordSalt"]) {
      const { stdout } = await run(["--salt", "pepper", "--order", order, "ann"], "secret");
      const filter = await maker.build({ salt: "pepper", auth: parse(stdout) as unknown }, host);
      assert.equal(await filter.handle(createConnectContext({ username: "ann", password: "secret" })), undefined);
      assert.equal(await filter.handle(createConnectContext({ username: "ann", password: "guess" })), "AuthFail");
    }
  });

  test("refuses what it can't use with exit code 2 and prints no entry", async () => {
    for (const [args, input, why] of [
      [[], "pw", /name the user/],
      [["ann", "secret"], "", /standard input/],
      [["--order", "pepper", "ann"], "pw", /saltPassword or passwordSalt/],
      [["--password", "pw", "ann"], "pw", /--password/],
      [["ann"], "", /empty/],
      [["ann"], "\n", /empty/],
      [["ann"], "x".repeat(65_536), /65535/],
    ] as const) {
      const { code, stdout, stderr } = await run(args, input);
      assert.deepEqual([code, stdout], [2, ""], `${args.join(" ")}: ${stderr}`);
      assert.match(stderr, why);
    }
  });

  test("the longest password that MQTT carries is taken", async () => {
    assert.equal((await run(["ann"], `${"x".repeat(65_535)}\n`)).code, 0);
  });

  test("an interrupt while it waits for the password ends it with 130", async () => {
    const interrupt = new AbortController();
    // An input that never ends, as a pipe left open is.
    const running = runCommand(command, ["ann"], { stdin: new PassThrough(), signal: interrupt.signal });
    interrupt.abort();
    const { code, stdout } = await running;
    assert.deepEqual([code, stdout], [130, ""]);
  });

  describe("on a terminal", () => {
    function type(keys: string) {
      const terminal = Object.assign(new PassThrough(), { isTTY: true });
      terminal.write(keys);
      return runCommand(command, ["--salt", "salt", "test"], { stdin: terminal });
    }

    test("asks twice and shows nothing of the password", async () => {
      const { code, stdout, stderr } = await type("test\rtest\r");
      assert.equal(code, 0);
      assert.deepEqual(parse(stdout), [{ username: "test", saltedSha256Pass: pageHash }]);
      assert.equal(stderr, "Password: \nAgain: \n");
    });

    test("refuses two that differ", async () => {
      const { code, stdout, stderr } = await type("test\rtset\r");
      assert.deepEqual([code, stdout], [2, ""]);
      assert.match(stderr, /differ/);
    });

    test("ends with 130 at Ctrl-C", async () => {
      const { code, stdout } = await type("te\u0003");
      assert.deepEqual([code, stdout], [130, ""]);
    });
  });

  test("through the sluice bin", async () => {
    const bin = fileURLToPath(new URL("../../kernel/cli.ts", import.meta.url));
    const child = spawn(process.execPath, [bin, "hash", "--salt", "salt", "test"], {
      stdio: ["pipe", "pipe", "inherit"],
    });
    child.stdin.end("test\n");
    const [stdout, [code]] = await Promise.all([text(child.stdout), once(child, "exit")]);
    assert.equal(code, 0);
    assert.deepEqual(parse(stdout), [{ username: "test", saltedSha256Pass: pageHash }]);
  });

  test("help names the options and the exit codes", () => {
    for (const word of ["--salt", "--order", "Exit codes", "Example"]) assert.ok(command.help.includes(word), word);
  });
});
