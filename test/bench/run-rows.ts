/** Measures rows against servers in turns, so that whatever else the machine does harms all alike. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createAuthority, issue } from "../helpers/certificates.ts";
import type { Identity } from "../helpers/certificates.ts";
import { type Kafka, startKafka } from "../helpers/kafka.ts";
import { createGenerator, type Generator } from "./generator.ts";
import type { Bench, Figures } from "./measure.ts";
import type { Row } from "./rows.ts";
import type { Server, ServerKind, Setup } from "./servers/server.ts";

export interface RunOptions {
  readonly rows: readonly Row[];
  /** The first is the one that the others are compared with. */
  readonly kinds: readonly ServerKind[];
  readonly seconds: number;
  readonly rounds: number;
  /** A line each for people who wait. */
  readonly progress: (line: string) => void;
}

/** Of one server in one row. */
export interface Result {
  readonly row: string;
  readonly server: string;
  readonly rounds: readonly Figures[];
  /** The round with the lowest figure that counts: what else the machine does only adds to it. */
  readonly best: Figures | undefined;
  /** Why there is none. */
  readonly error: string | undefined;
}

/** A server that doesn't get a row done within this is taken for stuck. */
const deadlineMs = 60_000;
const warmUpSeconds = 1;
const briefWarmUpSeconds = 0.4;

interface Place {
  readonly server: Server;
  readonly kafka: Bench["kafka"];
  close(): Promise<void>;
}

/** Rows for which no Kafka can be had are left out, with a line of progress. */
export async function runRows({ rows, kinds, seconds, rounds, progress }: RunOptions): Promise<Result[]> {
  const identity = await createIdentity();
  const wantsKafka = rows.some(({ setup }) => setup === "kafka" || setup === "mapper");
  const kafka = wantsKafka ? await startKafka() : undefined;
  const results: Result[] = [];
  const open = new Map<string, Place>();
  let generators = [createGenerator(), createGenerator()] as const;

  async function place(kind: ServerKind, setup: Setup): Promise<Place> {
    const key = `${kind.name} ${setup}`;
    const found = open.get(key) ?? (await startPlace(kind, setup, identity, kafka));
    open.set(key, found);
    return found;
  }

  async function closeAll(): Promise<void> {
    for (const [key, each] of open) {
      open.delete(key);
      await each.close();
    }
  }

  async function measure(row: Row, kind: ServerKind, round: number): Promise<Figures> {
    const { server, kafka: into } = await place(kind, row.setup);
    const [generator, reader] = generators;
    const warmUp = round === 0 ? warmUpSeconds : briefWarmUpSeconds;
    const bench: Bench = { server, generator, reader, seconds, warmUpSeconds: warmUp, kafka: into };
    return withDeadline(row.measure(bench));
  }

  async function restart(): Promise<void> {
    await closeAll();
    const old: readonly Generator[] = generators;
    generators = [createGenerator(), createGenerator()];
    for (const each of old) await each.close();
  }

  try {
    let setup: Setup | undefined;
    for (const [n, row] of rows.entries()) {
      if (!kafka && (row.setup === "kafka" || row.setup === "mapper")) {
        progress(`${row.title}: left out, for there is no Kafka`);
        continue;
      }
      if (row.setup !== setup || row.isFresh) await closeAll();
      ({ setup } = row);
      const able = kinds.filter((kind) => kind.setups.includes(row.setup) && (!row.http || kind.http));
      const of = new Map(
        able.map((kind) => [kind, { rounds: [] as Figures[], error: undefined as string | undefined }]),
      );
      for (let round = 0; round < (row.isFresh ? 1 : rounds); round++) {
        // Who is first in one round is last in the next.
        for (const kind of round % 2 === 0 ? able : able.toReversed()) {
          const found = of.get(kind)!;
          if (found.error !== undefined) continue;
          try {
            const figures = await measure(row, kind, round);
            found.rounds.push(figures);
            progress(`${n + 1}/${rows.length} ${row.name}, ${kind.name}: ${shown(figures[row.figure])} ${row.unit}`);
          } catch (error) {
            found.error = error instanceof Error ? error.message : String(error);
            progress(`${n + 1}/${rows.length} ${row.name}, ${kind.name}: ${found.error}`);
            await restart();
          }
          if (row.isFresh) await closeAll();
        }
      }
      for (const [kind, found] of of) {
        const best = found.rounds.toSorted((a, b) => (a[row.figure] ?? 0) - (b[row.figure] ?? 0))[0];
        results.push({ row: row.name, server: kind.name, ...found, best });
      }
    }
    return results;
  } finally {
    await closeAll();
    for (const each of generators) await each.close();
    await kafka?.stop();
  }
}

const shown = (value: number | undefined): string => (value ?? Number.NaN).toFixed(2);

async function withDeadline<T>(work: Promise<T>): Promise<T> {
  const { promise, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(() => reject(new Error(`not done within ${deadlineMs / 1000} s`)), deadlineMs);
  try {
    return await Promise.race([work, promise]);
  } finally {
    clearTimeout(timer);
  }
}

async function startPlace(
  kind: ServerKind,
  setup: Setup,
  identity: Identity,
  kafka: Kafka | undefined,
): Promise<Place> {
  const folder = await mkdtemp(join(tmpdir(), "sluice-bench-"));
  try {
    let into: Bench["kafka"];
    if (kafka && (setup === "kafka" || setup === "mapper")) {
      // As long as the topic of the other rows.
      const topic = `bench-${process.pid.toString(36)}-${Date.now().toString(36)}-${setup[0]}${kind.name[0]}`;
      await kafka.createTopic(topic, 4);
      const arrived = async (): Promise<number> =>
        [...(await kafka.endOffsets(topic)).values()].reduce((sum, offset) => sum + offset, 0);
      into = { brokers: kafka.brokers, topic, arrived };
    }
    const server = await kind.start({ setup, folder, kafka: into, identity });
    return {
      server,
      kafka: into,
      async close() {
        await server.stop();
        await rm(folder, { recursive: true, force: true });
      },
    };
  } catch (error) {
    await rm(folder, { recursive: true, force: true });
    throw error;
  }
}

/** Chain and authority in one: what clients trust is what the server shows. */
async function createIdentity(): Promise<Identity> {
  const authority = await createAuthority("bench");
  const { cert, key } = await issue(authority, { cn: "localhost", altNames: [{ type: 2, value: "localhost" }] });
  return { cert: `${cert}\n${authority.cert}`, key };
}
