import assert from "node:assert/strict";
import { test } from "node:test";
import { startAdminApi } from "../helpers/admin-api.ts";
import { createMemoryProxies } from "../helpers/proxies.ts";

interface Listing {
  sessions: { sessionID: string; topic: string }[];
  total: number;
}

const query = "/mqttproxy/mqttproxy/session/query";

function tenClients(): ReturnType<typeof createMemoryProxies> {
  const proxies = createMemoryProxies("mqttproxy", "other");
  for (let index = 0; index < 10; index++) proxies.subscribe("mqttproxy", `c${index}`, [`client/${index}`, `all/#`]);
  return proxies;
}

test("a session is shown with its state", async (t) => {
  const proxies = createMemoryProxies("mqttproxy");
  proxies.subscribe("mqttproxy", "dev1", ["a/+", "b"], { queued: 3, inflight: 1, clean: false });
  proxies.subscribe("mqttproxy", "dev0", [], { connected: false, username: undefined, address: undefined });
  const api = await startAdminApi(t, { overrides: proxies });
  const answer = await api.call("GET", query);
  assert.equal(answer.headers.get("content-type"), "application/json; charset=utf-8");
  const common = { topic: "", connectedAt: "2026-01-02T03:04:05.000Z", expiresAt: null };
  assert.deepEqual(answer.json, {
    sessions: [
      {
        ...common,
        sessionID: "dev0",
        connected: false,
        clean: true,
        username: null,
        address: null,
        subscriptions: [],
        queued: 0,
        inflight: 0,
      },
      {
        ...common,
        sessionID: "dev1",
        connected: true,
        clean: false,
        username: "test",
        address: "127.0.0.1",
        subscriptions: [
          { topicFilter: "a/+", qos: 1 },
          { topicFilter: "b", qos: 1 },
        ],
        queued: 3,
        inflight: 1,
      },
    ],
    total: 2,
  });
});

test("A25: pages of sessions; a query needs page and page_size", async (t) => {
  const api = await startAdminApi(t, { overrides: tenClients() });
  const sizes: [search: string, count: number][] = [
    ["", 10],
    ["?page=1&page_size=20", 10],
    ["?page=1&page_size=8", 8],
    ["?page=2&page_size=8", 2],
    ["?page=2&page_size=20", 0],
    ["?page=1&page_size=20&q=233", 0],
    ["?foo=1", 10],
  ];
  for (const [search, count] of sizes) {
    const answer = await api.call("GET", query + search);
    assert.equal(answer.status, 200, search);
    const { sessions, total } = answer.json as Listing;
    assert.equal(sessions.length, count, search);
    assert.equal(total, search.includes("233") ? 0 : 10, search);
  }
  const both = "if use query, please provide both page and page_size";
  const refused: [search: string, message: string][] = [
    ["?page=1", both],
    ["?page_size=5", both],
    ["?q=client", both],
    ["?page=0&page_size=5", "page in query should be number and >0"],
    ["?page=x&page_size=5", "page in query should be number and >0"],
    ["?page=1.5&page_size=5", "page in query should be number and >0"],
    ["?page=1&page_size=0", "page_size in query should be number and >0"],
    ["?page=1&page_size=-1", "page_size in query should be number and >0"],
    ["?page=1&page_size=", "page_size in query should be number and >0"],
  ];
  for (const [search, message] of refused) {
    const answer = await api.call("GET", query + search);
    assert.equal(answer.status, 400, search);
    assert.deepEqual(answer.json, { code: 400, message });
  }
});

test("L39: sessions are filtered before they are cut into pages, and none is an empty list", async (t) => {
  const api = await startAdminApi(t, { overrides: tenClients() });
  const found = await api.call("GET", `${query}?page=1&page_size=1&q=client/7`);
  const { sessions, total } = found.json as Listing;
  assert.deepEqual([sessions[0]?.sessionID, sessions[0]?.topic, sessions.length, total], ["c7", "client/7", 1, 1]);
  const second = (await api.call("GET", `${query}?page=2&page_size=4&q=all`)).json as Listing;
  assert.deepEqual(
    second.sessions.map(({ sessionID, topic }) => `${sessionID} ${topic}`),
    ["c4 all/#", "c5 all/#", "c6 all/#", "c7 all/#"],
  );
  assert.equal(second.total, 10);
  const empty = await api.call("GET", "/mqttproxy/other/session/query");
  assert.deepEqual(empty.json, { sessions: [], total: 0 });
});

test("A26: removed sessions are gone, unknown ones don't count", async (t) => {
  const proxies = tenClients();
  const api = await startAdminApi(t, { overrides: proxies });
  const path = "/mqttproxy/mqttproxy/sessions";
  const ids = ["c1", "c8", "c8", "nobody"].map((sessionID) => ({ sessionID }));
  const answer = await api.call("DELETE", path, { sessions: ids });
  assert.equal(answer.status, 200);
  assert.deepEqual(answer.json, { removed: 2 });
  const left = ((await api.call("GET", query)).json as Listing).sessions.map(({ sessionID }) => sessionID);
  assert.deepEqual(left, ["c0", "c2", "c3", "c4", "c5", "c6", "c7", "c9"]);
  assert.deepEqual((await api.call("DELETE", path, {})).json, { removed: 0 });
  for (const body of ["x", "[]", '{"sessions":{}}', '{"sessions":["c2"]}', '{"sessions":[{"sessionID":"c2"},{}]}']) {
    const refused = await api.call("DELETE", path, body);
    assert.equal(refused.status, 400, body);
    assert.match((refused.json as { message: string }).message, /^invalid json data from request body/);
  }
  // A body that is refused removes nothing, not even what came before its fault.
  assert.equal(((await api.call("GET", query)).json as Listing).total, 8);
});

test("L34: one proxy's sessions are neither seen nor removed through another", async (t) => {
  const proxies = tenClients();
  proxies.subscribe("other", "c1", ["elsewhere"]);
  const api = await startAdminApi(t, { overrides: proxies });
  const seen = (await api.call("GET", "/mqttproxy/other/session/query")).json as Listing;
  assert.deepEqual(
    seen.sessions.map(({ sessionID }) => sessionID),
    ["c1"],
  );
  const removed = await api.call("DELETE", "/mqttproxy/other/sessions", {
    sessions: [{ sessionID: "c1" }, { sessionID: "c2" }],
  });
  assert.deepEqual(removed.json, { removed: 1 });
  assert.equal(((await api.call("GET", query)).json as Listing).total, 10);
});

test("unknown proxies and other methods", async (t) => {
  const api = await startAdminApi(t, { overrides: tenClients() });
  assert.equal((await api.call("GET", "/mqttproxy/nobody/session/query")).status, 404);
  assert.equal((await api.call("DELETE", "/mqttproxy/nobody/sessions", {})).status, 404);
  const wrong = await api.call("DELETE", query);
  assert.deepEqual([wrong.status, wrong.headers.get("allow")], [405, "GET, HEAD"]);
  assert.equal((await api.call("POST", "/mqttproxy/mqttproxy/sessions", {})).headers.get("allow"), "DELETE");
});
