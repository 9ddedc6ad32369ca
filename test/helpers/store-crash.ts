/** kill -9 under load and a restart, again and again: what was acknowledged must reach every persistent subscriber. */
import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createCrashPublisher, createCrashSubscriber } from "./crash-clients.ts";
import { eventually } from "./eventually.ts";
import { createRandom } from "./random.ts";
import { spawnGateway, type SpawnedGateway } from "./spawned-gateway.ts";
import { childrenOf, comeBack } from "./workers.ts";

const yaml = `
kind: MQTTProxy
name: mqttproxy
host: 127.0.0.1
port: 0
brokerMode: true
queue: { maxMessages: 1000000 }
---
kind: LevelStore
name: sessions
dir: sessions
---
kind: AdminAPI
name: admin-api
port: 0
`;

export interface CrashReport {
  readonly acked: number;
  /** Acknowledged messages that a subscriber did not get, of all subscribers. */
  readonly missing: string[];
  /** QoS 2 messages that a subscriber got twice. */
  readonly doubles: string[];
  /** Messages of one publisher that a subscriber first got in another order. */
  readonly swapped: string[];
  /** From the start of the process until it listens, with what the journal held. */
  readonly startMs: number[];
}

/** @param workers 2 or more: in each round one of them is killed too, before the whole gateway is */
export async function crashAgainAndAgain(rounds: number, qos: 1 | 2, workers = 1): Promise<CrashReport> {
  const folder = await mkdtemp(join(tmpdir(), "sluice-store-crash-"));
  const config = join(folder, "sluice.yaml");
  await writeFile(config, `kind: Gateway\nname: gateway\nworkers: ${workers}\n---${yaml}`);
  const random = createRandom(20_261_125 + qos);
  const publishers = ["a", "b", "c"].map((id) => createCrashPublisher(id, qos));
  const [always, away] = [createCrashSubscriber("always", qos), createCrashSubscriber("away", qos)];
  const ackedNow = (): number => publishers.reduce((sum, { acked }) => sum + acked.size, 0);
  const startMs: number[] = [];
  let gateway: SpawnedGateway | undefined;

  async function start(): Promise<SpawnedGateway> {
    const startedAt = performance.now();
    const started = await spawnGateway(config);
    startMs.push(Math.round(performance.now() - startedAt));
    return started;
  }

  try {
    for (let round = 0; round < rounds; round++) {
      gateway = await start();
      const { port } = gateway;
      await always.connect(port);
      // Here in the first round only to subscribe, then in every third.
      if (round % 3 === 0) await away.connect(port);
      if (round === 0) away.destroy();
      const before = ackedNow();
      await Promise.all(publishers.map((publisher) => publisher.connect(port)));
      const enough = 500 + random(1500);
      if (workers > 1) {
        await eventually(() => ackedNow() - before >= enough, true, 60_000);
        const pids = await childrenOf(gateway.pid);
        process.kill(pids[random(pids.length)] ?? 0, "SIGKILL");
        const left = ackedNow();
        await gateway.logged(({ msg }) => msg.startsWith("A worker has ended"));
        for (const client of [always, ...publishers]) if (client.isClosed()) await comeBack(client, port);
        await eventually(() => ackedNow() - left >= enough, true, 60_000);
      }
      await eventually(() => ackedNow() - before >= enough, true, 60_000);
      gateway.signal("SIGKILL");
      for (const client of [always, away, ...publishers]) client.destroy();
    }
    gateway = await start();
    const { port } = gateway;
    await Promise.all([always, away, ...publishers].map((client) => client.connect(port)));
    await Promise.all(publishers.map((publisher) => publisher.finish()));
    const acked = publishers.flatMap((publisher) => [...publisher.acked]);
    const subscribers = [always, away];
    await eventually(() => subscribers.every(({ got }) => got.size >= acked.length), true, 60_000).catch(
      () => undefined,
    );
    return {
      acked: acked.length,
      missing: subscribers.flatMap(({ clientId, got }) =>
        acked.filter((payload) => !got.has(payload)).map((payload) => `${clientId}: ${payload}`),
      ),
      doubles: subscribers.flatMap(({ clientId, doubles }) => doubles.map((payload) => `${clientId}: ${payload}`)),
      swapped: subscribers.flatMap(({ clientId, got }) =>
        publishers.flatMap((publisher) => swapsOf(publisher.clientId, got).map((swap) => `${clientId}: ${swap}`)),
      ),
      startMs,
    };
  } finally {
    for (const client of [always, away, ...publishers]) client.destroy();
    await gateway?.stop();
    await rm(folder, { recursive: true, force: true });
  }
}

function swapsOf(publisher: string, got: ReadonlySet<string>): string[] {
  const numbers = [...got].flatMap((payload) => {
    const [by, number] = payload.split(" ");
    return by === publisher ? [Number(number)] : [];
  });
  return numbers.flatMap((number, at) =>
    at > 0 && number < (numbers[at - 1] ?? 0) ? [`${publisher} ${number} after ${numbers[at - 1]}`] : [],
  );
}

/** Fails with what was lost, what came twice and what came in another order. */
export function assertNothingLost({ acked, missing, doubles, swapped }: CrashReport, atLeast: number): void {
  assert.ok(acked >= atLeast, `only ${acked} messages were acknowledged`);
  assert.deepEqual({ missing, doubles, swapped }, { missing: [], doubles: [], swapped: [] });
}
