/** A web page in a real browser is a client as any other, by the WebSocket that the browser itself has. */
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { createRequire } from "node:module";
import { test } from "node:test";
import { chromium } from "playwright-core";
import { connectAsync, type MqttClient } from "mqtt";
import { createAuthority, issue } from "../helpers/certificates.ts";
import { startProbedGateway } from "../helpers/probed-gateway.ts";

const executablePath = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);
const args = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

/** What mqtt.js makes of `globalThis.mqtt`; runs in the page. */
async function talk(url: string): Promise<string[]> {
  const { mqtt } = globalThis as unknown as { mqtt: { connectAsync: typeof connectAsync } };
  const client: MqttClient = await mqtt.connectAsync(url, { clientId: "page", reconnectPeriod: 0 });
  const got: string[] = [];
  const all = new Promise<void>((resolve) => {
    client.on("message", (topic, payload) => {
      got.push(`${topic} ${payload.length}`);
      if (got.length === 2) resolve();
    });
  });
  await client.subscribeAsync("to/page/#", { qos: 1 });
  await client.publishAsync("to/page/small", "grüße", { qos: 1 });
  await client.publishAsync("to/page/large", "x".repeat(900_000), { qos: 1 });
  await all;
  await client.endAsync();
  return got;
}

/** The browser's WebSocket itself, with a CONNECT made by hand. @returns the subprotocol, CONNACK, and the close code */
async function byHand(url: string): Promise<[string, number[], number]> {
  const socket = new WebSocket(url, ["mqtt"]);
  socket.binaryType = "arraybuffer";
  const event = (name: string): Promise<Event> =>
    new Promise((resolve) => socket.addEventListener(name, resolve, { once: true }));
  await event("open");
  const connect = [0x10, 13, 0, 4, 77, 81, 84, 84, 4, 2, 0, 0, 0, 1, 104];
  socket.send(new Uint8Array(connect.slice(0, 5)));
  socket.send(new Uint8Array(connect.slice(5)));
  const connack = [...new Uint8Array(((await event("message")) as MessageEvent).data as ArrayBuffer)];
  socket.send("text is no MQTT");
  const { code } = (await event("close")) as CloseEvent;
  return [socket.protocol, connack, code];
}

test("a page connects by ws and wss, publishes and is delivered to", { timeout: 120_000 }, async (t) => {
  if (executablePath === undefined) {
    assert.ok(!process.env["CI"], "CI has a browser");
    t.skip("there is no Chromium here");
    return;
  }
  const identity = await issue(await createAuthority("Test"), {
    cn: "localhost",
    altNames: [{ type: 2, value: "localhost" }],
  });
  const gateway = await startProbedGateway(t, {
    brokerMode: true,
    certificate: [{ name: "c", ...identity }],
    listeners: [
      { name: "ws", protocol: "ws", host: "127.0.0.1", port: 0 },
      { name: "wss", protocol: "wss", host: "127.0.0.1", port: 0, path: "/secure" },
    ],
  });
  const bundle = await readFile(createRequire(import.meta.url).resolve("mqtt/dist/mqtt.min"), "utf8");
  const pages = createServer((request, response) => {
    const isScript = request.url === "/mqtt.js";
    response.writeHead(200, { "Content-Type": isScript ? "text/javascript" : "text/html" });
    response.end(isScript ? bundle : "<!doctype html><title>page</title><script src=/mqtt.js></script>");
  }).listen(0, "127.0.0.1");
  await new Promise((resolve) => pages.once("listening", resolve));
  t.after(() => pages.close());
  // The certificate is the test's own.
  const browser = await chromium.launch({ executablePath, args: [...args, "--ignore-certificate-errors"] });
  t.after(() => browser.close());
  const page = await browser.newPage();
  await page.goto(`http://localhost:${(pages.address() as AddressInfo).port}/`);

  const urls = [
    `ws://localhost:${gateway.listenerPort("ws")}/mqtt`,
    `wss://localhost:${gateway.listenerPort("wss")}/secure`,
  ];
  for (const url of urls) {
    assert.deepEqual(await page.evaluate(talk, url), ["to/page/small 7", "to/page/large 900000"]);
    assert.deepEqual(await page.evaluate(byHand, url), ["mqtt", [0x20, 2, 0, 0], 1003]);
  }
  assert.equal(await gateway.metric("sluice_connects_accepted_total"), 4);
  assert.equal(await gateway.metric("sluice_packets_refused_total", { code: "MALFORMED_PACKET" }), 2);
});
