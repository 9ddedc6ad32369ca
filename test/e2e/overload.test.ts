/** Twice the rate that the gateway can take, in the short form; `npm run bench:overload` is the long one. */
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { createGenerator } from "../bench/generator.ts";
import { linesOf, overload } from "../bench/overload.ts";
import { sluice } from "../bench/servers/sluice.ts";
import { isLong } from "../helpers/long-test.ts";

test("under twice the load: bounded memory, devices served in time, no hanging HTTP publish, and soon calm again", async (t) => {
  const folder = await mkdtemp(join(tmpdir(), "sluice-overload-"));
  const [flooding, probing] = [createGenerator(), createGenerator()];
  t.after(async () => {
    await Promise.all([flooding.close(), probing.close()]);
    await rm(folder, { recursive: true, force: true });
  });
  const identity = { cert: "", key: "" };
  const server = await sluice.start({ setup: "broker", folder, kafka: undefined, identity });
  t.after(() => server.stop());
  const seconds = isLong ? 60 : 5;
  // What it can take is measured beside whatever else runs, so twice of it might not be too much.
  const times = isLong ? 2 : 5;
  const found = await overload({ server, flooding, probing, seconds, times, requests: isLong ? 600 : 100 });
  t.diagnostic(linesOf(found));
  assert.ok(found.taken > 0 && found.taken < found.offered, "it was not more than it can take");
  // 50 connections may have 8 MiB under way each; of small messages they have much less.
  assert.ok(found.memoryMiB.peak < found.memoryMiB.before + 400, `${found.memoryMiB.peak} MiB`);
  // Generous, for a machine that does other things too: without turns, they are beyond 5 s on an idle one.
  assert.equal(found.unanswered, 0);
  assert.ok(found.pings.p99 < 5000 && found.acks.p99 < 5000, "a device's packets wait");
  assert.ok(found.connects.p99 < 10_000, "connections wait");
  const { 200: accepted = 0, ...others } = found.http.statuses;
  assert.ok(accepted > 0);
  assert.deepEqual(
    Object.keys(others).filter((status) => status !== "503" && status !== "429"),
    [],
  );
  assert.equal(found.http.unanswered, 0);
  // A slow subscriber is waited for 10 s at most.
  assert.ok(found.http.times.worst < 25_000, `an HTTP publish took ${found.http.times.worst} ms`);
  assert.ok(found.recoveryMs < 15_000, `recovered after ${found.recoveryMs} ms`);
});
