/** NATSCluster with TLS and credentials, and what it says where they are wrong. */
import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { type Config, problemsOf } from "../../plugins/nats-cluster/config.ts";
import { nkeys } from "../../plugins/nats-cluster/node_modules/@nats-io/transport-node/lib/mod.js";
import { checkServer } from "../../plugins/nats-cluster/server-check.ts";
import { createAuthority, issue } from "../helpers/certificates.ts";
import { eventually } from "../helpers/eventually.ts";
import { startNats } from "../helpers/nats.ts";
import { createOperator } from "../helpers/nats-jwt.ts";
import { defaults, messageOf, startNode } from "../helpers/nats-engine.ts";

test("TLS by an authority of one's own, user and password; a wrong one of either says so and does not join", async (t) => {
  const folder = await mkdtemp(join(tmpdir(), "sluice-nats-tls-"));
  t.after(() => rm(folder, { recursive: true }));
  const [ca, stranger] = [await createAuthority("authority"), await createAuthority("stranger")];
  const identity = await issue(ca, { cn: "nats", altNames: [{ type: 2, value: "localhost" }] });
  const [cert, key] = [join(folder, "cert.pem"), join(folder, "key.pem")];
  await writeFile(cert, identity.cert);
  await writeFile(key, identity.key);
  const config = "authorization { users: [{ user: gateway, password: secret }] }";
  const nats = await startNats({ tls: { cert, key }, config });
  if (!nats) {
    t.skip("no NATS");
    return;
  }
  t.after(() => nats.stop());
  // By name: the library compares no address with a certificate.
  const urls = nats.urls.map((url) => url.replace("127.0.0.1", "localhost"));
  const options = { shards: 1, replicas: 1, user: "gateway", password: "secret", tls: { ca: ca.cert } };
  const node = await startNode(urls, "secure", options);
  assert.ok((await node.proxy.log.append(messageOf("a", "x"))).seq > 0);
  assert.ok(
    node.logged.some((line) => line.includes("sync_interval: always")),
    "it says what it can't see",
  );
  await node.engine.stop();

  for (const [wrong, expected] of [
    [{ ...options, password: "guess" }, /does not accept this node's `user` \(.*authorization violation/i],
    [{ ...options, tls: { ca: stranger.cert } }, /certificate is not trusted/i],
  ] as const) {
    const refused = await startNode(urls, "refused", { ...wrong, wait: false });
    await eventually(() => expected.test(refused.engine.health().reasons.join()), true);
    assert.equal(refused.engine.health().durable, false);
    await refused.engine.stop();
  }

  const other = await startNode(urls, "other", { ...options, shards: 2, wait: false });
  await eventually(() => other.engine.health().reasons.join().includes("write shards: 1"), true);
  assert.equal(other.engine.health().durable, false);
  await other.engine.stop();
});

const secret = (key: ReturnType<typeof nkeys.createUser>): string => new TextDecoder().decode(key.getSeed());

/** One that is right joins; each of the others does not, says why, and says nothing that is secret. */
async function checkWays(
  urls: readonly string[],
  right: Partial<Config>,
  wrong: readonly (readonly [options: Partial<Config>, reason: RegExp])[],
): Promise<void> {
  const alone = { shards: 1, replicas: 1 };
  const node = await startNode(urls, "right", { ...alone, ...right });
  assert.ok((await node.proxy.log.append(messageOf("a", "x"))).seq > 0);
  await node.engine.stop();
  const refused = await Promise.all(
    wrong.map(([options], at) => startNode(urls, `wrong${at}`, { ...alone, ...options, wait: false })),
  );
  for (const [at, { engine, logged }] of refused.entries()) {
    const [options, reason] = wrong[at]!;
    await eventually(() => engine.health().reasons.some((each) => reason.test(each)), true, 15_000);
    assert.deepEqual([engine.health().live, engine.health().durable], [false, false]);
    const said = [...logged, ...engine.health().reasons].join("\n");
    const secrets = [options.token, options.nkey, ...(options.creds?.split("\n") ?? []), options.tls?.key];
    for (const each of secrets) if (each && !each.startsWith("--")) assert.ok(!said.includes(each));
    await engine.stop();
  }
}

test("a token, an nkey, a JWT: each joins with the right one, and says which option is wrong", async (t) => {
  const [known, stranger] = [nkeys.createUser(), nkeys.createUser()];
  const operator = createOperator();
  const none = /asks for credentials, and NATSCluster has none/;
  const ways = [
    {
      config: "authorization { token: the-token }",
      right: { token: "the-token" },
      wrong: [
        [{ token: "a-guess" }, /does not accept this node's `token` \(.*authorization violation/i],
        [{}, none],
      ],
    },
    {
      config: `authorization { users: [{ nkey: ${known.getPublicKey()} }] }`,
      right: { nkey: `${secret(known)}\n` },
      wrong: [
        [{ nkey: secret(stranger) }, /does not accept this node's `nkey`/],
        [{}, none],
      ],
    },
    {
      config: operator.config,
      right: { creds: operator.creds() },
      wrong: [
        [{ creds: createOperator().creds() }, /does not accept this node's `creds`/],
        [{}, none],
      ],
    },
  ] as const;
  for (const { config, right, wrong } of ways) {
    const nats = await startNats({ config });
    if (!nats) {
      t.skip("no NATS");
      return;
    }
    try {
      await checkWays(nats.urls, right, wrong);
    } finally {
      await nats.stop();
    }
  }
});

test("a client certificate: one of the servers' authority joins; without, or of another, it says what may be wanted", async (t) => {
  const folder = await mkdtemp(join(tmpdir(), "sluice-nats-mtls-"));
  t.after(() => rm(folder, { recursive: true }));
  const [ca, stranger] = [await createAuthority("authority"), await createAuthority("stranger")];
  const server = await issue(ca, { cn: "nats", altNames: [{ type: 2, value: "localhost" }] });
  const file = async (name: string, text: string): Promise<string> => {
    await writeFile(join(folder, name), text);
    return join(folder, name);
  };
  const tls = { cert: await file("c", server.cert), key: await file("k", server.key), ca: await file("a", ca.cert) };
  const nats = await startNats({ tls });
  if (!nats) {
    t.skip("no NATS");
    return;
  }
  t.after(() => nats.stop());
  const urls = nats.urls.map((url) => url.replace("127.0.0.1", "localhost"));
  const [own, foreign] = [await issue(ca, { cn: "gateway" }), await issue(stranger, { cn: "gateway" })];
  await checkWays(urls, { tls: { ca: ca.cert, ...own } }, [
    [{ tls: { ca: ca.cert } }, /may ask for `tls.cert` and `tls.key`/],
    [{ tls: { ca: ca.cert, ...foreign } }, /may ask for another `tls.cert`, of an authority that it trusts/],
    [{ tls: { ca: stranger.cert, ...own } }, /certificate is not trusted: look at `tls.ca`/],
  ]);
});

test("credentials that can't be any: the config says which option, and not what is in it", async () => {
  const config = { ...defaults, servers: ["a:1"] };
  const [ca, stranger] = [await createAuthority("a"), await createAuthority("b")];
  const problems = (options: Partial<Config>): string[] =>
    problemsOf({ ...config, ...options }).map(({ field, message }) => `${field.join(".")}: ${message}`);
  const seed = secret(nkeys.createUser());
  const account = secret(nkeys.createAccount());
  const creds = createOperator().creds();
  for (const options of [{ nkey: seed }, { nkey: `${seed}\n` }, { creds }, { tls: { ca: ca.cert, ...ca } }]) {
    assert.deepEqual(problems(options), []);
  }
  for (const [options, expected] of [
    [{ nkey: `${seed.slice(0, -2)}AA` }, /^nkey: is not the seed of a user's nkey/],
    [{ nkey: account }, /^nkey: is not the seed of a user's nkey/],
    [{ creds: seed }, /^creds: is not what a \.creds file has/],
    [{ creds: creds.replace(/SU\w+/, account) }, /^creds: has a seed that is not a user's/],
    [{ tls: { ca: "/etc/ca.pem" } }, /^tls\.ca: is no PEM certificate/],
    [{ tls: { cert: ca.key, key: ca.key } }, /^tls\.cert: is no PEM certificate/],
    [{ tls: { cert: ca.cert, key: seed } }, /^tls\.key: is no PEM private key/],
    [{ tls: { cert: ca.cert, key: stranger.key } }, /^tls\.key: is not the key of tls\.cert/],
  ] as const) {
    const [problem, ...rest] = problems(options);
    assert.deepEqual(rest, []);
    assert.match(problem ?? "", expected);
    assert.ok(!problem?.includes(seed.slice(0, 20)) && !problem?.includes(account.slice(0, 20)));
  }
});

test("two nodes with one name are told", async (t) => {
  const nats = await startNats();
  if (!nats) {
    t.skip("no NATS");
    return;
  }
  t.after(() => nats.stop());
  const options = { shards: 1, replicas: 1 };
  const first = await startNode(nats.urls, "twin", options);
  const second = await startNode(nats.urls, "twin", { ...options, wait: false });
  for (const { engine } of [first, second]) {
    await eventually(() => engine.health().reasons.join().includes("called twin too"), true);
    assert.equal(engine.health().durable, false);
  }
  await second.engine.stop();
  await eventually(() => first.engine.health().durable, true, 15_000);
  await first.engine.stop();
});

test("what a schema can't say of the options", async () => {
  const { key } = await createAuthority("a");
  const config = { ...defaults, servers: ["a:1"] };
  assert.deepEqual(problemsOf(config), []);
  assert.deepEqual(
    problemsOf({ ...config, token: "x", user: "u", tls: { key: key.trim() } }).map(({ field }) => field),
    [["token"], ["tls"]],
  );
  assert.deepEqual(
    problemsOf({ ...config, token: "x", password: "z" }).map(({ field }) => field),
    [["password"]],
  );
  assert.deepEqual(
    problemsOf({ ...config, timeouts: { ackMs: 3000, totalMs: 2000, kickMs: 1 } }).map(({ field }) => field),
    [["timeouts", "ackMs"]],
  );
});

test("servers that are too old", () => {
  assert.match(checkServer("2.10.29").problem ?? "", /2\.11/);
  assert.match(checkServer("2.14.0").warning ?? "", /before 2\.15/);
  assert.deepEqual([checkServer("2.15.2"), checkServer("3.0.0")], [{ takesBatches: true }, { takesBatches: true }]);
});
