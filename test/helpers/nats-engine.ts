/** Engines of NATSCluster over a real NATS, each as one node, with what they log and receive. */
import type { Logger } from "../../kernel/plugin.ts";
import type { ClusterListener, ClusterMessage, ClusterProxy, LogPosition } from "../../kernel/cluster-engine.ts";
import { createMetrics } from "../../kernel/metrics.ts";
import type { Config } from "../../plugins/nats-cluster/config.ts";
import { createEngine, type NatsEngine } from "../../plugins/nats-cluster/engine.ts";
import { eventually } from "./eventually.ts";

export interface Received {
  readonly message: ClusterMessage;
  readonly position: LogPosition | undefined;
  readonly previous: number | undefined;
}

export interface EngineNode {
  readonly engine: NatsEngine;
  readonly proxy: ClusterProxy;
  readonly received: Received[];
  readonly interruptions: () => number;
  /** Messages of level warn and error. */
  readonly logged: string[];
  metrics(): Promise<string>;
}

export const defaults: Omit<Config, "servers"> = {
  namespace: "t",
  nodeName: "",
  shards: 2,
  replicas: 3,
  log: { retention: "6h", maxBytes: -1 },
  interest: { max: 50_000 },
  fence: { grace: 15 },
  timeouts: { ackMs: 2000, totalMs: 12_000, kickMs: 3000 },
  maxInFlight: 4096,
};

const clock = {
  now: () => Date.now(),
  setTimeout(callback: () => void, ms: number) {
    const timer = setTimeout(callback, ms);
    return { clear: () => clearTimeout(timer) };
  },
};

/** Resolves once the node can make things durable, unless `wait` is false. */
export async function startNode(
  servers: readonly string[],
  nodeName: string,
  options: Partial<Config> & { readonly wait?: boolean; readonly listener?: Partial<ClusterListener> } = {},
): Promise<EngineNode> {
  const { wait = true, listener = {}, ...config } = options;
  const received: Received[] = [];
  const logged: string[] = [];
  let interruptions = 0;
  const note = (_: object, message: string): void => void logged.push(message);
  const log: Logger = { debug() {}, info() {}, warn: note, error: note };
  const metrics = createMetrics();
  const engine = createEngine({ ...defaults, ...config, servers, nodeName }, { nodeName, log, metrics, clock });
  const proxy = engine.open("p", {
    onMessage: (message, position, previous) => void received.push({ message, position, previous }),
    onInterrupted: () => void interruptions++,
    ...listener,
  });
  engine.start();
  if (wait) await eventually(() => engine.health().durable, true, 20_000);
  return { engine, proxy, received, interruptions: () => interruptions, logged, metrics: () => metrics.text() };
}

export function messageOf(topic: string, payload: string, more: Partial<ClusterMessage> = {}): ClusterMessage {
  const rest: Omit<ClusterMessage, "topic" | "payload"> = {
    qos: 1,
    retain: false,
    expiresAt: 0,
    from: undefined,
    to: undefined,
    receipt: undefined,
    properties: undefined,
  };
  return { topic, payload: Buffer.from(payload), ...rest, ...more };
}
