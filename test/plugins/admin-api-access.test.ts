/** Who may call: keys, users, client certificates, and what is refused before anything listens. */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { request } from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import assert from "node:assert/strict";
import { test } from "node:test";
import { generate } from "selfsigned";
import adminApi from "../../plugins/admin-api/index.ts";
import type { Config } from "../../plugins/admin-api/index.ts";
import key from "../../plugins/admin-api/key.ts";
import sessions from "../../plugins/admin-api/sessions.ts";
import { defaults, startAdminApi } from "../helpers/admin-api.ts";
import { runCommand, createMemoryProxies } from "@sluice/testkit";

const hashOf = (text: string): string => createHash("sha256").update(text).digest("hex");
const keys = [
  { name: "grafana", hash: hashOf("reading-key"), access: "read" },
  { name: "ci", hash: hashOf("writing-key").toUpperCase(), access: "write" },
] as const;
const bearer = (value: string) => ({ authorization: `Bearer ${value}` });
const basic = (user: string, password: string) => ({
  authorization: `Basic ${Buffer.from(`${user}:${password}`).toString("base64")}`,
});

/** As `sluice check` would find them. */
const problemsOf = (config: Partial<Config>): string[] =>
  (adminApi.validate?.({ ...defaults, ...config }) ?? []).map(({ field, message }) => `${field.join(".")}: ${message}`);

test("without keys and users nothing is asked for", async (t) => {
  const api = await startAdminApi(t);
  assert.equal((await api.call("PUT", "/logs/level/warn")).status, 200);
});

test("a key is asked for everywhere but on open routes, and one for reading can't write", async (t) => {
  const proxies = createMemoryProxies("mqttproxy");
  proxies.subscribe("mqttproxy", "dev1", ["a"]);
  const api = await startAdminApi(t, { overrides: proxies, config: { keys } });
  const publish = (headers = {}) => api.call("POST", "/mqttproxy/mqttproxy/topics/publish", { topic: "a" }, headers);

  const strangers = [{}, bearer("reading-ke"), bearer(keys[0].hash), basic("grafana", "reading-key"), bearer("")];
  for (const headers of [...strangers, { authorization: "reading-key" }]) {
    for (const path of ["/objects", "/readyz", "/metrics", "/no/such/route", "/healthzz"]) {
      const answer = await api.call("GET", path, undefined, headers);
      assert.deepEqual([path, answer.status], [path, 401]);
      assert.equal(answer.headers.get("www-authenticate"), 'Bearer realm="sluice"');
    }
    const answer = await publish(headers);
    assert.equal(answer.status, 401);
    assert.match(answer.text, /SLUICE_API_KEY/);
  }
  assert.equal((await api.call("GET", "/healthz")).status, 200);
  assert.equal((await fetch(`${api.url}/healthz/`)).status, 200);
  assert.equal((await fetch(`${api.url}/metrics`)).status, 401);
  assert.equal((await api.call("POST", "/healthz")).status, 401);

  const reader = bearer("reading-key");
  for (const path of ["/objects", "/readyz", "/metrics"])
    assert.equal((await api.call("GET", path, undefined, reader)).status, 200);
  for (const [method, path] of [
    ["POST", "/mqttproxy/mqttproxy/topics/publish"],
    ["DELETE", "/mqttproxy/mqttproxy/sessions"],
    ["PUT", "/logs/level/debug"],
    ["POST", "/objects"],
  ] as const) {
    const answer = await api.call(method, path, {}, reader);
    assert.deepEqual([path, answer.status], [path, 403]);
    assert.match(answer.text, /key:grafana may only read/);
  }
  assert.deepEqual(proxies.published, []);
  assert.equal(api.host.logLevel.get(), "info");

  assert.equal((await publish({ authorization: "bearer writing-key" })).status, 200);
  assert.equal(proxies.published.length, 1);
  assert.equal((await api.call("PUT", "/logs/level/debug", undefined, bearer("writing-key"))).status, 200);
  const { logs } = api;
  const said = JSON.stringify(logs);
  for (const secret of ["reading-key", "writing-key", keys[0].hash, keys[1].hash]) assert.ok(!said.includes(secret));
});

test("users may read and write, beside keys; more routes can be open", async (t) => {
  const config = { keys, basicAuth: { admin: "pass:word", café: "ümläute!" }, openRoutes: ["/readyz", "/metrics"] };
  const api = await startAdminApi(t, { config });
  const put = (headers = {}) => api.call("PUT", "/logs/level/warn", undefined, headers);
  assert.equal((await put(basic("admin", "pass:word"))).status, 200);
  assert.equal((await put(basic("café", "ümläute!"))).status, 200);
  assert.equal((await put(bearer("writing-key"))).status, 200);
  for (const headers of [basic("admin", "passwort"), basic("nobody", "pass:word"), bearer("admin:pass:word")])
    assert.equal((await put(headers)).status, 401);
  assert.equal(
    (await put()).headers.get("www-authenticate"),
    'Bearer realm="sluice", Basic realm="sluice", charset="UTF-8"',
  );
  assert.equal((await api.call("GET", "/metrics")).status, 200);
  assert.equal((await api.call("GET", "/readyz")).status, 200);
  assert.equal((await api.call("GET", "/healthz")).status, 401);
});

test("beyond loopback it is refused without anything that asks who calls", async () => {
  for (const host of ["0.0.0.0", "::", "192.0.2.1", "gateway.lan"]) {
    const [problem, ...others] = problemsOf({ host });
    assert.match(problem ?? "", /^host: can be reached from other machines.*give keys, basicAuth or tls.clientCA/);
    assert.deepEqual(others, []);
    assert.deepEqual(problemsOf({ host, keys }), []);
    assert.deepEqual(problemsOf({ host, basicAuth: { admin: "password" } }), []);
  }
  for (const host of ["127.0.0.1", "127.9.9.9", "::1", "localhost"]) assert.deepEqual(problemsOf({ host }), []);
});

test("what can't work is a problem with its field, and shows no secret", async () => {
  const [one, two] = await Promise.all([generate(), generate()]);
  const tls = (cert: string, privateKey: string, clientCA?: string) =>
    problemsOf({ tls: { cert, key: privateKey, ...(clientCA !== undefined && { clientCA }) } });
  assert.deepEqual(tls(one.cert, one.private, two.cert), []);
  assert.match(tls(one.cert, two.private).join(), /^tls.key: does not belong to the certificate/);
  assert.match(tls("cert.pem", one.private).join(), /^tls.cert: is not a certificate in PEM: .*\$\{file:/);
  assert.match(tls(one.cert, "hush-hush").join(), /^tls.key: is not a private key in PEM/);
  assert.ok(!tls(one.cert, "hush-hush").join().includes("hush"));
  assert.match(tls(one.cert, one.private, "ca.pem").join(), /^tls.clientCA: /);
  assert.match(problemsOf({ keys: [keys[0], keys[0]] }).join(), /^keys.1.name: another key/);
  assert.match(problemsOf({ basicAuth: { "a:b": "password" } }).join(), /^basicAuth.a:b: /);
});

test("over TLS a certificate of clientCA lets in, and no other", async (t) => {
  const [server, caller, stranger] = await Promise.all(
    ["localhost", "backend-7", "backend-7"].map((value) => generate([{ name: "commonName", value }])),
  );
  const tls = { cert: server!.cert, key: server!.private, clientCA: caller!.cert };
  const api = await startAdminApi(t, { config: { tls } });
  assert.match(api.url, /^https:/);
  const call = (pem: { cert?: string; key?: string }) =>
    new Promise<number | undefined>((resolve, reject) => {
      const options = { ca: server!.cert, checkServerIdentity: () => undefined, agent: false as const, ...pem };
      const sent = request(`${api.url}/apis/v2/logs/level/warn`, { method: "PUT", ...options }, (answer) => {
        answer.resume();
        resolve(answer.statusCode);
      });
      sent.on("error", reject).end();
    });
  assert.equal(await call({ cert: caller!.cert, key: caller!.private }), 200);
  await assert.rejects(call({}));
  await assert.rejects(call({ cert: stranger!.cert, key: stranger!.private }));
});

test("sluice key makes a key that its entry lets in, and commands say what to do without one", async (t) => {
  const made = await runCommand(key, ["ci", "--access", "write", "--json"]);
  const { key: secret, entry } = JSON.parse(made.stdout) as { key: string; entry: Config["keys"][number] };
  assert.deepEqual([made.code, entry.name, entry.access, made.stderr], [0, "ci", "write", ""]);
  assert.equal(entry.hash, hashOf(secret));
  const api = await startAdminApi(t, {
    overrides: createMemoryProxies("mqttproxy"),
    config: { keys: [entry, keys[0]] },
  });
  const list = (apiKey?: string) =>
    runCommand(sessions, ["list", "mqttproxy"], {
      env: { SLUICE_API: api.url, ...(apiKey !== undefined && { SLUICE_API_KEY: apiKey }) },
    });
  assert.deepEqual(await list(secret), { code: 0, stdout: "no sessions\n", stderr: "" });
  const stranger = await list();
  assert.deepEqual([stranger.code, stranger.stdout], [1, ""]);
  assert.match(stranger.stderr, /answered 401: .*SLUICE_API_KEY; `sluice key NAME` makes one/);
  const kick = await runCommand(sessions, ["kick", "mqttproxy", "dev1"], {
    env: { SLUICE_API: api.url, SLUICE_API_KEY: "reading-key" },
  });
  assert.equal(kick.code, 1);
  assert.match(kick.stderr, /answered 403: key:grafana may only read: use a key with `access: write`/);

  const plain = await runCommand(key, ["ci"]);
  const shown = /: (sluice_[\w-]{43})\n$/.exec(plain.stderr)?.[1] ?? "";
  assert.equal(plain.stdout, `- name: "ci"\n  hash: "${hashOf(shown)}"\n  access: read\n`);
  assert.ok(!plain.stdout.includes(shown));
  for (const args of [[], ["a", "b"], ["a", "--access", "all"], ["a", "--what"]])
    assert.equal((await runCommand(key, args)).code, 2);
});

test("commands speak https where NODE_EXTRA_CA_CERTS names the issuer, and say so where it doesn't", async (t) => {
  const pems = await generate([{ name: "commonName", value: "gateway" }], {
    extensions: [{ name: "subjectAltName", altNames: [{ type: 7, ip: "127.0.0.1" }] }],
  });
  const folder = await mkdtemp(join(tmpdir(), "sluice-https-"));
  t.after(() => rm(folder, { recursive: true }));
  const ca = join(folder, "ca.pem");
  await writeFile(ca, pems.cert);
  const overrides = createMemoryProxies("mqttproxy");
  const api = await startAdminApi(t, { overrides, config: { keys, tls: { cert: pems.cert, key: pems.private } } });
  const bin = join(import.meta.dirname, "../../kernel/cli.ts");
  // A process of its own: Node reads the variable when it starts.
  const list = (env: NodeJS.ProcessEnv) =>
    new Promise<{ code: unknown; stdout: string; stderr: string }>((resolve) => {
      const args = [bin, "sessions", "list", "mqttproxy", "--api", api.url];
      const options = { env: { ...process.env, SLUICE_API_KEY: "reading-key", ...env }, signal: t.signal };
      execFile(process.execPath, args, options, (error, stdout, stderr) =>
        resolve({ code: error?.code ?? 0, stdout, stderr }),
      );
    });
  const [trusting, wary] = await Promise.all([list({ NODE_EXTRA_CA_CERTS: ca }), list({})]);
  assert.deepEqual(trusting, { code: 0, stdout: "no sessions\n", stderr: "" });
  assert.deepEqual([wary.code, wary.stdout], [3, ""]);
  assert.match(wary.stderr, /shows a certificate that is not trusted: .*NODE_EXTRA_CA_CERTS=ca\.pem/);
});
