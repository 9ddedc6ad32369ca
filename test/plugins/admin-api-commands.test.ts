import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { IncomingMessage, RequestListener } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import assert from "node:assert/strict";
import { test } from "node:test";
import type { TestContext } from "node:test";
import publish from "../../plugins/admin-api/publish.ts";
import sessions from "../../plugins/admin-api/sessions.ts";
import { startAdminApi } from "../helpers/admin-api.ts";
import { runCommand } from "../helpers/command.ts";
import { createMemoryProxies } from "../helpers/proxies.ts";

/** Something that listens, and perhaps isn't a gateway. */
async function listen(t: TestContext, handle: RequestListener): Promise<string> {
  const server = createServer(handle);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => {
    server.close();
    server.closeAllConnections();
  });
  const address = server.address();
  return `http://127.0.0.1:${typeof address === "object" ? address?.port : 0}`;
}

/** A port that nothing listens on: bound a moment ago, and closed. */
async function deadUrl(): Promise<string> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  return `http://127.0.0.1:${typeof address === "object" ? address?.port : 0}`;
}

test("publish sends an argument, a file or standard input, byte for byte", async (t) => {
  const proxies = createMemoryProxies("mqttproxy");
  proxies.subscribe("mqttproxy", "dev1", ["cmd/#"]);
  proxies.subscribe("mqttproxy", "dev2", ["cmd/+"], { connected: false });
  const api = await startAdminApi(t, { overrides: proxies });
  const env = { SLUICE_API: api.url };
  const folder = mkdtempSync(join(tmpdir(), "sluice-publish-"));
  t.after(() => rmSync(folder, { recursive: true }));
  const binary = Buffer.from(Array.from({ length: 256 }, (_, index) => index));
  const file = join(folder, "payload.bin");
  writeFileSync(file, binary);

  const argument = await runCommand(publish, ["mqttproxy", "cmd/a", "time to update", "-q", "1"], { env });
  assert.deepEqual(argument, { code: 0, stdout: "2 sessions matched, 1 connected\n", stderr: "" });
  const json = await runCommand(publish, ["mqttproxy", "cmd/a", "--file", file, "--json"], { env });
  assert.deepEqual([json.code, JSON.parse(json.stdout)], [0, { matched: 2, connected: 1 }]);
  const piped = await runCommand(publish, ["mqttproxy", "other"], { env, stdin: binary });
  assert.deepEqual([piped.code, piped.stdout], [0, "no session is subscribed to this topic\n"]);
  await runCommand(publish, ["mqttproxy", "cmd/a", "--base64", `${binary.toString("base64")}\n`], { env });
  await runCommand(publish, ["mqttproxy", "cmd/a", ""], { env });
  await runCommand(publish, ["mqttproxy", "cmd/a", "--", "-5"], { env });

  assert.deepEqual(
    proxies.published.map(({ topic, qos, payload }) => [topic, qos, payload]),
    [
      ["cmd/a", 1, Buffer.from("time to update")],
      ["cmd/a", 0, binary],
      ["other", 0, binary],
      ["cmd/a", 0, binary],
      ["cmd/a", 0, Buffer.alloc(0)],
      ["cmd/a", 0, Buffer.from("-5")],
    ],
  );
});

test("sessions list is a table, safe to print, or JSON", async (t) => {
  const proxies = createMemoryProxies("mqttproxy");
  const api = await startAdminApi(t, { overrides: proxies });
  const args = ["list", "mqttproxy", "--api", `${api.url}/`];
  assert.deepEqual(await runCommand(sessions, args), { code: 0, stdout: "no sessions\n", stderr: "" });
  proxies.subscribe("mqttproxy", "dev1", ["Beijing/+/Update", "x"], { queued: 12 });
  proxies.subscribe("mqttproxy", "\u001b[2Jevil\u202e", [], {
    connected: false,
    username: undefined,
    address: undefined,
  });
  const table = await runCommand(sessions, args);
  assert.equal(table.code, 0);
  assert.deepEqual(table.stdout.split("\n"), [
    "CLIENT                 STATE      USER  ADDRESS    SINCE                 QUEUED  INFLIGHT  SUBSCRIPTIONS",
    "\\u{1b}[2Jevil\\u{202e}  away       -     -          2026-01-02T03:04:05Z  0       0         -",
    "dev1                   connected  test  127.0.0.1  2026-01-02T03:04:05Z  12      0         Beijing/+/Update (1), x (1)",
    "2 sessions, 1 connected",
    "",
  ]);
  const found = await runCommand(sessions, [...args, "-q", "Beijing/+", "--json"]);
  const { sessions: rows, total } = JSON.parse(found.stdout) as { sessions: { sessionID: string }[]; total: number };
  assert.deepEqual([rows.map(({ sessionID }) => sessionID), total], [["dev1"], 1]);
});

test("sessions kick removes, and exits with 1 where one had no session", async (t) => {
  const proxies = createMemoryProxies("mqttproxy");
  for (const id of ["dev1", "dev2", "dev3"]) proxies.subscribe("mqttproxy", id, []);
  const api = await startAdminApi(t, { overrides: proxies });
  const env = { SLUICE_API: api.url };
  const both = await runCommand(sessions, ["kick", "mqttproxy", "dev1", "dev2", "dev1"], { env });
  assert.deepEqual(both, { code: 0, stdout: "removed 2 of 2 sessions\n", stderr: "" });
  const again = await runCommand(sessions, ["kick", "mqttproxy", "dev1", "dev3"], { env });
  assert.deepEqual(again, { code: 1, stdout: "removed 1 of 2 sessions\n", stderr: "" });
  assert.deepEqual(await proxies.proxies.get("mqttproxy")?.sessions.query(), []);
});

test("a refused request exits with 1 and says why", async (t) => {
  const api = await startAdminApi(t, { overrides: createMemoryProxies("mqttproxy") });
  const env = { SLUICE_API: api.url };
  const unknown = await runCommand(publish, ["other", "a", "x"], { env });
  assert.deepEqual([unknown.code, unknown.stdout], [1, ""]);
  assert.equal(unknown.stderr, `${api.url} answered 404: no proxy is named "other"\n`);
  const topic = await runCommand(publish, ["mqttproxy", "a/#", "x"], { env });
  assert.equal(topic.code, 1);
  assert.match(topic.stderr, /answered 400: .*topic/);
  const base64 = await runCommand(publish, ["mqttproxy", "a", "?", "--base64"], { env });
  assert.deepEqual([base64.code, /payload decode failed/.test(base64.stderr)], [1, true]);
  const list = await runCommand(sessions, ["list", "other"], { env });
  assert.equal(list.code, 1);

  const page = await listen(t, (_, response) => response.end("<html>"));
  const stranger = await runCommand(sessions, ["list", "mqttproxy", "--api", page]);
  assert.deepEqual([stranger.code, /is it a Sluice gateway/.test(stranger.stderr)], [1, true]);
  const moved = await listen(t, (incoming, response) =>
    response.writeHead(302, { location: `${api.url}${incoming.url}` }).end(),
  );
  const redirected = await runCommand(sessions, ["list", "mqttproxy", "--api", moved]);
  assert.deepEqual([redirected.code, redirected.stderr], [1, `${moved} answered 302: Found\n`]);
});

test("a gateway that can't be reached is exit code 3", async () => {
  const url = await deadUrl();
  for (const [command, args] of [
    [publish, ["mqttproxy", "a", "x"]],
    [sessions, ["list", "mqttproxy"]],
  ] as const) {
    const run = await runCommand(command, [...args, "--api", url]);
    assert.deepEqual([run.code, run.stdout], [3, ""]);
    assert.match(run.stderr, new RegExp(`^can't reach a gateway at ${url}: .*ECONNREFUSED.*--api URL or SLUICE_API`));
  }
});

test("wrong usage is exit code 2 and sends nothing", async (t) => {
  let requests = 0;
  const url = await listen(t, (_, response) => {
    requests++;
    response.end("{}");
  });
  const env = { SLUICE_API: url };
  const cases: [typeof publish, string[]][] = [
    [publish, []],
    [publish, ["mqttproxy"]],
    [publish, ["mqttproxy", "a", "two", "words"]],
    [publish, ["mqttproxy", "a", "x", "-q", "3"]],
    [publish, ["mqttproxy", "a", "x", "--wait", "long"]],
    [publish, ["mqttproxy", "a", "x", "--file", "y"]],
    [publish, ["mqttproxy", "a", "--file", "/nonexistent/file"]],
    [publish, ["mqttproxy", "a", "x", "--unknown"]],
    [publish, ["mqttproxy", "a", "x", "--api", "localhost:2381"]],
    [publish, ["mqttproxy", "a", "x", "--api", "http://user:secret@127.0.0.1:1"]],
    [sessions, []],
    [sessions, ["list"]],
    [sessions, ["list", "mqttproxy", "more"]],
    [sessions, ["kick", "mqttproxy"]],
    [sessions, ["kick", "mqttproxy", "dev1", "-q", "x"]],
    [sessions, ["drop", "mqttproxy", "dev1"]],
  ];
  for (const [command, args] of cases) {
    const run = await runCommand(command, args, { env });
    assert.deepEqual([run.code, run.stdout], [2, ""], args.join(" "));
    assert.notEqual(run.stderr, "");
  }
  assert.equal(requests, 0);
});

test("--help is printed; a payload after -- is none", async (t) => {
  for (const command of [publish, sessions]) {
    for (const flag of ["--help", "-h"]) {
      const run = await runCommand(command, [flag]);
      assert.deepEqual([run.code, run.stdout, run.stderr], [0, `${command.help}\n`, ""]);
    }
  }
  const proxies = createMemoryProxies("mqttproxy");
  const api = await startAdminApi(t, { overrides: proxies });
  await runCommand(publish, ["mqttproxy", "a", "--api", api.url, "--", "--help"]);
  assert.equal(proxies.published[0]?.payload.toString(), "--help");
});

test("the API key goes along as a bearer token, below the URL's own path", async (t) => {
  const seen: IncomingMessage[] = [];
  const url = await listen(t, (incoming, response) => {
    seen.push(incoming);
    response.end('{"sessions":[],"total":0}');
  });
  await runCommand(sessions, ["list", "a b"], { env: { SLUICE_API: `${url}/gateway/`, SLUICE_API_KEY: "k1" } });
  await runCommand(sessions, ["list", "p"], { env: { SLUICE_API: url } });
  assert.deepEqual(
    seen.map((incoming) => [incoming.url, incoming.headers.authorization]),
    [
      ["/gateway/apis/v2/mqttproxy/a%20b/session/query", "Bearer k1"],
      ["/apis/v2/mqttproxy/p/session/query", undefined],
    ],
  );
});

test("an interrupt ends the wait for standard input and for an answer", async (t) => {
  const waiting = new AbortController();
  const stdin = new Readable({ read: () => waiting.abort() });
  const url = await listen(t, () => answering.abort());
  const read = await runCommand(publish, ["mqttproxy", "a", "--api", url], { stdin, signal: waiting.signal });
  assert.equal(read.code, 130);
  const answering = new AbortController();
  const sent = await runCommand(publish, ["mqttproxy", "a", "x", "--api", url], { signal: answering.signal });
  assert.equal(sent.code, 130);
});
