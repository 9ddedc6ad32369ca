/** `sluice drain`: the real bin stops a running gateway, gently, through its API. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { once } from "node:events";
import { test } from "node:test";
import { promisify } from "node:util";
import { connectAsync } from "mqtt";
import { startTestGateway } from "../helpers/gateway.ts";
import { bin } from "../helpers/gateway-under-test.ts";

const run = promisify(execFile);

test("sluice drain: not ready any more, what is under way acknowledged, clients closed, the API gone", async (t) => {
  const { gateway, api, url } = await startTestGateway(`
kind: MQTTProxy
name: mqttproxy
port: 0
brokerMode: true
`);
  // As `sluice run` does.
  const stopped = gateway.drainAsked.then(() => gateway.stop());
  t.after(() => gateway.stop());
  const client = await connectAsync(url(), { clientId: "c", reconnectPeriod: 0 });
  const closed = once(client.stream, "close");
  await client.publishAsync("t", "x", { qos: 1 });
  const { stdout } = await run(process.execPath, [bin, "drain", "--api", api]);
  assert.equal(stdout, "draining: 1 client to close\n");
  await Promise.all([closed, stopped]);
  await assert.rejects(run(process.execPath, [bin, "drain", "--api", api]), { code: 3 });
});
