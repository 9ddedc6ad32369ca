/** NATSCluster with TLS and credentials, and what it says where they are wrong. */
import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { problemsOf } from "../../plugins/nats-cluster/config.ts";
import { checkServer } from "../../plugins/nats-cluster/server-check.ts";
import { createAuthority, issue } from "../helpers/certificates.ts";
import { eventually } from "../helpers/eventually.ts";
import { startNats } from "../helpers/nats.ts";
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
    [{ ...options, password: "guess" }, /authorization violation/i],
    [{ ...options, tls: { ca: stranger.cert } }, /certificate/i],
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

test("what a schema can't say of the options", () => {
  const config = { ...defaults, servers: ["a:1"] };
  assert.deepEqual(problemsOf(config), []);
  assert.deepEqual(
    problemsOf({ ...config, token: "x", creds: "y", password: "z", tls: { cert: "c" } }).map(({ field }) => field),
    [["creds"], ["password"], ["tls"]],
  );
  assert.deepEqual(
    problemsOf({ ...config, timeouts: { ackMs: 3000, totalMs: 2000, kickMs: 1 } }).map(({ field }) => field),
    [["timeouts", "ackMs"]],
  );
});

test("servers that are too old", () => {
  assert.match(checkServer("2.10.29").problem ?? "", /2\.11/);
  assert.match(checkServer("2.14.0").warning ?? "", /before 2\.15/);
  assert.deepEqual([checkServer("2.15.2"), checkServer("3.0.0")], [{}, {}]);
});
