import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { TestContext } from "node:test";
import { hash } from "node:crypto";
import kind from "../../plugins/auth/mqtt-client-auth.ts";
import { createConnectContext, createPublishContext, createFilterMaker, createTestHost } from "@sluice/testkit";

const maker = createFilterMaker(kind, new URL("../../plugins/auth/mqtt-client-auth.schema.json", import.meta.url));

/** SHA-256 of "salttest": what the documentation's page prints for salt `salt` and password `test`. */
const saltFirst = "1bc1a361f17092bc7af4b2f82bf9194ea9ee2ca49eb2e53e39f555bc1eeaed74";
/** SHA-256 of "testsalt": what Easegress' code computes for the same. */
const passwordFirst = hash("sha256", "testsalt");

const pageOptions = { salt: "salt", auth: [{ username: "test", saltedSha256Pass: saltFirst }] };

type Attempt = Parameters<typeof createConnectContext>[0];
const right = { username: "test", password: "test" };

/** `true` where the client may connect. */
async function accepts(t: TestContext, options: object, attempt: Attempt): Promise<boolean> {
  const { host, close } = createTestHost();
  t.after(close);
  const filter = await maker.build(options, host);
  const ctx = createConnectContext(attempt);
  const result = await filter.handle(ctx);
  if (result === undefined) {
    assert.deepEqual(ctx.decision, {});
    return true;
  }
  assert.equal(result, "AuthFail");
  assert.equal(ctx.decision.outcome, "reject");
  return false;
}

describe("the order of salt and password", () => {
  const withOrder = (saltedSha256Pass: string, order?: string) => ({
    salt: "salt",
    auth: [{ username: "test", saltedSha256Pass }],
    ...(order && { order }),
  });
  const cases: readonly [order: string | undefined, hashed: string, accepted: boolean][] = [
    [undefined, saltFirst, true],
    [undefined, passwordFirst, true],
    ["any", saltFirst, true],
    ["any", passwordFirst, true],
    ["saltPassword", saltFirst, true],
    ["saltPassword", passwordFirst, false],
    ["passwordSalt", saltFirst, false],
    ["passwordSalt", passwordFirst, true],
  ];
  for (const [order, hashed, accepted] of cases) {
    const which = hashed === saltFirst ? "the page's hash" : "Easegress' hash";
    test(`order ${order ?? "left out"}: ${which} is ${accepted ? "right" : "wrong"}`, async (t) => {
      assert.equal(await accepts(t, withOrder(hashed, order), right), accepted);
      assert.equal(await accepts(t, withOrder(hashed, order), { username: "test", password: "wrong" }), false);
    });
  }

  test("any takes no third order", async (t) => {
    const doubled = hash("sha256", "saltsalttest");
    assert.equal(await accepts(t, withOrder(doubled), right), false);
  });
});

describe("A34: who may connect", () => {
  test("unknown users, wrong and missing passwords are refused as bad user name or password", async (t) => {
    const { host, close, metricValue } = createTestHost();
    t.after(close);
    const filter = await maker.build(pageOptions, host);
    const attempts: Attempt[] = [
      { username: "nobody", password: "test" },
      { username: "Test", password: "test" },
      { username: "test", password: "Test" },
      { username: "test", password: "" },
      { username: "test" },
      { password: "test" },
      {},
      { username: "", password: "test" },
      { username: "__proto__", password: "test" },
    ];
    for (const attempt of attempts) {
      const ctx = createConnectContext(attempt);
      assert.equal(await filter.handle(ctx), "AuthFail", JSON.stringify(attempt));
      assert.deepEqual(ctx.decision, { outcome: "reject", reason: "badUserNameOrPassword" });
    }
    const ctx = createConnectContext(right);
    assert.equal(await filter.handle(ctx), undefined);
    assert.equal(await metricValue("sluice_auth_attempts_total", { outcome: "refused" }), attempts.length);
    assert.equal(await metricValue("sluice_auth_attempts_total", { outcome: "accepted" }), 1);
  });

  test("an empty client id is refused for what it is, even with the right password", async (t) => {
    const { host, close } = createTestHost();
    t.after(close);
    const filter = await maker.build(pageOptions, host);
    const ctx = createConnectContext({ ...right, clientId: "" });
    assert.equal(await filter.handle(ctx), "AuthFail");
    assert.deepEqual(ctx.decision, { outcome: "reject", reason: "clientIdentifierNotValid" });
    const wrong = createConnectContext({ username: "test", password: "wrong", clientId: "" });
    await filter.handle(wrong);
    assert.equal(wrong.decision.reason, "badUserNameOrPassword");
  });

  test("an empty list refuses everyone and says so", async (t) => {
    const { host, logs, close } = createTestHost();
    t.after(close);
    const filter = await maker.build({ auth: [] }, host);
    assert.equal(await filter.handle(createConnectContext(right)), "AuthFail");
    assert.deepEqual(
      logs.filter(({ level }) => level === "warn").map(({ message }) => message),
      ["auth lists no user, so every client is refused"],
    );
  });

  test("each user has a password of their own", async (t) => {
    const options = {
      salt: "s",
      auth: [
        { username: "ann", saltedSha256Pass: hash("sha256", "sone") },
        { username: "bob", saltedSha256Pass: hash("sha256", "stwo") },
      ],
    };
    assert.equal(await accepts(t, options, { username: "ann", password: "one" }), true);
    assert.equal(await accepts(t, options, { username: "bob", password: "two" }), true);
    assert.equal(await accepts(t, options, { username: "ann", password: "two" }), false);
  });

  test("of two entries for one user the last counts, with a warning", async (t) => {
    const { host, logs, close } = createTestHost();
    t.after(close);
    const auth = [
      { username: "test", saltedSha256Pass: hash("sha256", "old") },
      { username: "test", saltedSha256Pass: hash("sha256", "new") },
    ];
    const filter = await maker.build({ auth }, host);
    assert.equal(await filter.handle(createConnectContext({ username: "test", password: "old" })), "AuthFail");
    assert.equal(await filter.handle(createConnectContext({ username: "test", password: "new" })), undefined);
    assert.deepEqual(
      logs.filter(({ level }) => level === "warn").map(({ fields }) => fields),
      [{ username: "test" }],
    );
  });

  test("hexadecimal digits count in either case; salt and password may be any text", async (t) => {
    const auth = [{ username: "zoë", saltedSha256Pass: hash("sha256", "sälz🧂pässwört").toUpperCase() }];
    assert.equal(await accepts(t, { salt: "sälz🧂", auth }, { username: "zoë", password: "pässwört" }), true);
  });

  test("without a salt the password alone is hashed", async (t) => {
    const auth = [{ username: "test", saltedSha256Pass: hash("sha256", "test") }];
    assert.equal(await accepts(t, { auth }, right), true);
  });
});

test("packets that are no CONNECT pass", async (t) => {
  const { host, close } = createTestHost();
  t.after(close);
  const filter = await maker.build({ auth: [] }, host);
  const ctx = createPublishContext();
  assert.equal(await filter.handle(ctx), undefined);
  assert.deepEqual(ctx.decision, {});
});

test("a refusal logs neither password nor user name", async (t) => {
  const { host, logs, close } = createTestHost();
  t.after(close);
  const filter = await maker.build(pageOptions, host);
  await filter.handle(createConnectContext({ username: "typed-my-password-here", password: "hunter2" }));
  assert.ok(logs.length > 0);
  assert.doesNotMatch(JSON.stringify(logs), /hunter2|typed-my-password-here/);
});

test("an unknown user takes as long as a known one with a wrong password", async (t) => {
  const { host, close } = createTestHost();
  t.after(close);
  const filter = await maker.build(pageOptions, host);
  // A long password makes the hashing, which an early answer would leave out, cost milliseconds.
  const password = "x".repeat(1_000_000);
  const fastest = { known: Infinity, unknown: Infinity };
  for (let round = 0; round < 20; round++) {
    for (const [key, username] of [
      ["known", "test"],
      ["unknown", "nobody"],
    ] as const) {
      const ctx = createConnectContext({ username, password });
      const started = performance.now();
      await filter.handle(ctx);
      fastest[key] = Math.min(fastest[key], performance.now() - started);
    }
  }
  assert.ok(fastest.unknown > fastest.known / 2, `unknown ${fastest.unknown} ms, known ${fastest.known} ms`);
});

describe("what the config check refuses", () => {
  test("a hash that is not 64 hexadecimal digits, without repeating it", () => {
    for (const bad of ["", "1bc1", `${saltFirst}00`, saltFirst.replace("1", "g"), ` ${saltFirst}`]) {
      const problems = maker.problems({ auth: [{ username: "test", saltedSha256Pass: bad }] });
      assert.deepEqual(Object.keys(problems), ["auth.0.saltedSha256Pass"], JSON.stringify(bad));
      if (bad !== "") assert.doesNotMatch(JSON.stringify(problems), new RegExp(bad.trim()));
    }
  });

  test("a missing list, an unknown order, a misspelt key, an empty user name", () => {
    assert.deepEqual(Object.keys(maker.problems({ salt: "s" })), ["auth"]);
    assert.deepEqual(Object.keys(maker.problems({ ...pageOptions, order: "pepper" })), ["order"]);
    assert.match(maker.problems({ ...pageOptions, slat: "s" })["slat"] ?? "", /salt/);
    const auth = [{ username: "", saltedSha256Pass: saltFirst }];
    assert.deepEqual(Object.keys(maker.problems({ auth })), ["auth.0.username"]);
  });

  test("nothing in the page's options", () => {
    assert.deepEqual(maker.problems(pageOptions), {});
  });
});
