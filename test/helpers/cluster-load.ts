/**
 * Persistent clients and publishers, by MQTT and HTTP, that come back whenever they are dropped, to whichever gateway they
 * are given; and what must hold of everything that was acknowledged meanwhile.
 */
import type { TestContext } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import {
  createCrashPublisher,
  createCrashSubscriber,
  type CrashPublisher,
  type CrashSubscriber,
} from "./crash-clients.ts";
import { eventually } from "./eventually.ts";
import type { SpawnedGateway } from "./spawned-gateway.ts";

export interface LoadOptions {
  readonly clients: number;
  /** Of each QoS; every client gets the messages of two of them and of one that publishes by HTTP. */
  readonly publishers: number;
  /** One client of so many gets the messages of all publishers. */
  readonly wildcardEvery: number;
  /** Between two messages of one publisher. */
  readonly pauseMs: number;
  /** Where to connect, and where to publish by HTTP. Undefined: nowhere, now. */
  gatewayFor(client: LoadClient | undefined): SpawnedGateway | undefined;
}

export type LoadClient = CrashSubscriber | CrashPublisher;

export interface LoadReport {
  /** Messages. */
  readonly acked: number;
  /** Acknowledged messages times the clients that were to get them. */
  readonly required: number;
  readonly missing: string[];
  /** QoS 2 messages that a client got twice. */
  readonly doubles: string[];
  readonly swapped: string[];
}

export interface Load {
  readonly subscribers: readonly CrashSubscriber[];
  readonly everybody: readonly LoadClient[];
  /** How often it has connected. */
  connects(client: LoadClient): number;
  /** It is being connected. */
  isBusy(client: LoadClient): boolean;
  reconnect(client: LoadClient): Promise<void>;
  /** Everybody, and then publishes until `end`, and brings back who was dropped. */
  start(): Promise<void>;
  /** Stops publishing, and waits until everything has come, as long as there is progress. */
  end(): Promise<LoadReport>;
}

const reconnectAtOnce = 40;
const patienceMs = 90_000;
/** Without any progress. */
const quietMs = 40_000;

/** All ends with the test. */
export function createLoad(t: TestContext, options: LoadOptions): Load {
  const qoses = [1, 2] as const;
  const publishers = qoses.flatMap((qos) =>
    Array.from({ length: options.publishers }, (_, n) => createCrashPublisher(`q${qos}-${n}`, qos, 4, options.pauseMs)),
  );
  const clients = qoses.flatMap((qos) =>
    Array.from({ length: options.clients / 2 }, (_, n) => {
      const source = n % options.publishers;
      // Some with a wildcard, which get everything: the log is read otherwise for them.
      const filter = n % options.wildcardEvery === 0 ? `load/+` : `load/q${qos}-${source}`;
      return { filter, subscriber: createCrashSubscriber(`c${qos}-${n}`, qos, filter) };
    }),
  );
  const subscribers = clients.map(({ subscriber }) => subscriber);
  const everybody: readonly LoadClient[] = [...subscribers, ...publishers];
  const connects = new Map<LoadClient, number>();
  const busy = new Set<LoadClient>();
  const httpAcked = new Set<string>();
  let isPublishing = true;
  let isOver = false;
  let work: Promise<unknown> = Promise.resolve();
  t.after(() => {
    isPublishing = false;
    isOver = true;
    for (const each of everybody) each.destroy();
  });

  /** At some gateway that takes it. */
  async function connect(client: LoadClient): Promise<void> {
    const until = performance.now() + patienceMs;
    while (!isOver) {
      client.destroy();
      try {
        const gateway = options.gatewayFor(client);
        if (!gateway) throw new Error("there is no gateway");
        await client.connect(gateway.port);
        connects.set(client, (connects.get(client) ?? 0) + 1);
        return;
      } catch (error) {
        if (performance.now() > until) throw error;
        await sleep(100);
      }
    }
  }

  async function reconnect(client: LoadClient): Promise<void> {
    if (busy.has(client)) return;
    busy.add(client);
    try {
      await connect(client);
    } finally {
      busy.delete(client);
    }
  }

  async function repair(): Promise<void> {
    const lost = everybody.filter((each) => each.isClosed() && !busy.has(each));
    await Promise.all(lost.slice(0, reconnectAtOnce).map(reconnect));
  }

  async function keepConnected(): Promise<void> {
    while (!isOver) {
      await repair();
      await sleep(20);
    }
  }

  async function publishByHttp(): Promise<void> {
    for (let n = 1; isPublishing; n++) {
      const payload = `http ${n}`;
      try {
        const response = await fetch(
          `${options.gatewayFor(undefined)?.api}/apis/v2/mqttproxy/mqttproxy/topics/publish`,
          {
            method: "POST",
            body: JSON.stringify({ topic: "load/http", qos: 2, payload }),
            signal: AbortSignal.timeout(20_000),
          },
        );
        await response.body?.cancel();
        if (response.status === 200) httpAcked.add(payload);
      } catch {
        // Nobody has said that it was taken.
      }
      await sleep(options.pauseMs);
    }
  }

  function acknowledged(): ReadonlyMap<string, readonly string[]> {
    const mqtt = publishers.map((each) => [`load/${each.clientId}`, [...each.acked]] as const);
    return new Map([...mqtt, ["load/http", [...httpAcked]]]);
  }

  return {
    subscribers,
    everybody,
    connects: (client) => connects.get(client) ?? 0,
    isBusy: (client) => busy.has(client),
    reconnect,
    async start() {
      for (let at = 0; at < subscribers.length; at += reconnectAtOnce) {
        await Promise.all(subscribers.slice(at, at + reconnectAtOnce).map(reconnect));
      }
      await Promise.all(publishers.map(reconnect));
      work = Promise.all([keepConnected(), publishByHttp()]);
      work.catch(() => undefined);
    },
    async end() {
      isPublishing = false;
      const finished = Promise.all(publishers.map((publisher) => publisher.finish()));
      let isFinished = false;
      void finished.then(() => (isFinished = true));
      await eventually(() => isFinished, true, patienceMs);
      const acked = acknowledged();
      const due = (filter: string): readonly string[] =>
        filter.endsWith("+") ? [...acked.values()].flat() : (acked.get(filter) ?? []);
      const missingNow = (): string[] =>
        clients.flatMap(({ filter, subscriber }) =>
          due(filter).flatMap((payload) => (subscriber.got.has(payload) ? [] : [`${subscriber.clientId}: ${payload}`])),
        );
      // On a busy machine it takes a while: what counts is that it goes on.
      let least = Infinity;
      for (let until = performance.now() + quietMs; performance.now() < until;) {
        const left = missingNow().length;
        if (left === 0) break;
        if (left < least) until = performance.now() + quietMs;
        least = Math.min(least, left);
        await sleep(250);
      }
      isOver = true;
      await work;
      return {
        acked: [...acked.values()].reduce((sum, each) => sum + each.length, 0),
        required: clients.reduce((sum, { filter }) => sum + due(filter).length, 0),
        missing: missingNow(),
        doubles: subscribers.flatMap(({ clientId, doubles }) => doubles.map((each) => `${clientId}: ${each}`)),
        swapped: clients.flatMap(({ filter, subscriber }) => swapsOf(subscriber, new Set(due(filter)))),
      };
    },
  };
}

/** Of each publisher, acknowledged messages that first came behind a later one. */
function swapsOf({ clientId, got }: CrashSubscriber, acked: ReadonlySet<string>): string[] {
  const lasts = new Map<string, number>();
  const swaps: string[] = [];
  for (const payload of got) {
    if (!acked.has(payload)) continue;
    const [by = "", number = ""] = payload.split(" ");
    const last = lasts.get(by) ?? 0;
    if (Number(number) < last) swaps.push(`${clientId}: ${payload} after ${last}`);
    else lasts.set(by, Number(number));
  }
  return swaps;
}
