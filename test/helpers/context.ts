/** Contexts for calling a filter's `handle` without a proxy around it. */
import type {
  Client,
  ConnectContext,
  Message,
  PublishContext,
  PublishPacket,
  Reason,
  SubscribeContext,
} from "../../kernel/plugin.ts";

/** What a filter decided through the context. */
export interface Decision {
  outcome?: "drop" | "reject" | "disconnect";
  reason?: Reason;
}

interface Base {
  readonly clientId?: string;
  readonly username?: string | undefined;
  readonly data?: ReadonlyMap<string, unknown> | Record<string, unknown>;
}

function createBase({ clientId = "client-1", username, data = {} }: Base) {
  const decision: Decision = {};
  const client: Client = {
    id: clientId,
    username,
    address: "127.0.0.1",
    protocolVersion: 4,
    certificate: undefined,
    data: new Map(),
  };
  return {
    decision,
    members: {
      origin: "client" as const,
      client,
      data: new Map(data instanceof Map ? data : Object.entries(data)),
      signal: new AbortController().signal,
      drop() {
        decision.outcome = "drop";
      },
      reject(reason: Reason) {
        decision.outcome = "reject";
        decision.reason = reason;
      },
      disconnect(reason: Reason) {
        decision.outcome = "disconnect";
        decision.reason = reason;
      },
    },
  };
}

export function createPublishContext(
  options: Base & { topic?: string; payload?: string | Buffer; qos?: PublishPacket["qos"] } = {},
): PublishContext & { readonly decision: Decision } {
  const { decision, members } = createBase(options);
  const payload = options.payload ?? "hello";
  return {
    ...members,
    decision,
    type: "Publish",
    packet: {
      topic: options.topic ?? "a/b/c",
      payload: typeof payload === "string" ? Buffer.from(payload) : payload,
      qos: options.qos ?? 1,
      retain: false,
      dup: false,
      packetId: options.qos === 0 ? undefined : 1,
    },
  };
}

export function createConnectContext(
  options: Base & { password?: string | undefined; clean?: boolean; will?: Message } = {},
): ConnectContext & { readonly decision: Decision } {
  const { decision, members } = createBase(options);
  return {
    ...members,
    decision,
    type: "Connect",
    packet: {
      clientId: members.client.id,
      username: members.client.username,
      password: options.password === undefined ? undefined : Buffer.from(options.password),
      clean: options.clean ?? true,
      keepalive: 60,
      will: options.will && { ...options.will, delaySec: 0 },
    },
  };
}

export function createSubscribeContext(
  options: Base & { topicFilters?: readonly string[] } = {},
): SubscribeContext & { readonly decision: Decision } {
  const { decision, members } = createBase(options);
  const topicFilters = options.topicFilters ?? ["a/b/c"];
  return {
    ...members,
    decision,
    type: "Subscribe",
    packet: {
      packetId: 1,
      subscriptions: topicFilters.map((topicFilter) => ({ topicFilter, qos: 1, refused: false })),
    },
  };
}
