/** POST /mqttproxy/:name/topics/publish: a backend's messages to a proxy's subscribers, or to one client. */
import type { ParameterizedContext } from "koa";
import type { Host, PublishOutcome, PublishRequest } from "@sluice/kernel";
import { invalidJson, readJson } from "./body.ts";
import { send } from "./negotiate.ts";
import { describeProblem, problem } from "./problem.ts";
import { createPace } from "./pace.ts";
import { createPublishGate, type Passage } from "./publish-gate.ts";
import { type PublishItem, readPublishItem } from "./publish-request.ts";
import { createRefusals } from "./refusals.ts";
import type { Route } from "./route.ts";

/** Messages of one request. */
const maxItems = 10_000;
/** A longer list waits for no other node's answer: who matches there is not counted. */
const maxCounted = 100;

const usualWaitMs = 5_000;
/** Below the time after which a socket on which nothing moves is closed. */
const maxWaitMs = 60_000;

export interface PublishLimits {
  readonly maxBodyBytes: number;
  readonly maxPublishes: number;
}

export function publishRoutes(host: Host, { maxBodyBytes, maxPublishes }: PublishLimits): Route[] {
  const gate = createPublishGate(maxPublishes, host.metrics);
  const pace = createPace();
  const refusals = createRefusals(host);

  async function publish(
    proxy: string,
    { message, clientId }: PublishItem,
    request: Omit<PublishRequest, "clientId">,
  ): Promise<object> {
    return answerOf(await host.publish(proxy, message, { ...request, clientId }));
  }

  /**
   * Each has its own result. Those to one topic, or one client, go out one after the other, so that their order holds; the
   * others side by side.
   */
  async function publishAll(ctx: ParameterizedContext, proxy: string, items: readonly unknown[], waitMs?: number) {
    const last = new Map<string, Promise<unknown>>();
    const countAll = items.length <= maxCounted;
    const results = items.map((given): Promise<object> => {
      const work = async (): Promise<object> => publish(proxy, itemOf(given, waitMs), { waitMs, countAll });
      const lane = laneOf(given);
      // What is waited for has been handed out before the wait begins.
      const done = waitMs === undefined ? (last.get(lane) ?? Promise.resolve()).then(work) : work();
      const result = done.catch((error: unknown) => describeProblem(error, ctx, host.log));
      last.set(lane, result);
      return result;
    });
    const all = await Promise.all(results);
    ctx.status = all.some((each) => "code" in each) ? 207 : 200;
    send(ctx, all);
  }

  async function answer(ctx: ParameterizedContext, name: string, waitMs: number | undefined, passage: Passage) {
    const body = await readJson(ctx, maxBodyBytes);
    if (!Array.isArray(body)) {
      send(ctx, await publish(name, itemOf(body, waitMs), { waitMs, countAll: true }));
    } else if (body.length > maxItems) {
      throw problem(400, `a list may have ${maxItems} messages, not ${body.length}`);
    } else {
      passage.widen(body.length);
      await publishAll(ctx, name, body, waitMs);
    }
  }

  return [
    {
      method: "POST",
      path: "/mqttproxy/:name/topics/publish",
      summary: "publish a message, or a list of them, to the subscribers of a proxy or to one client",
      async handle(ctx) {
        const name = ctx.params["name"]!;
        if (!host.proxies.get(name)) throw problem(404, `no proxy is named ${JSON.stringify(name)}`);
        const waitMs = wantedWait(ctx);
        // Before the body is read: what is read of it takes memory too.
        const passage = gate.enter();
        if (!passage) {
          await refusals.turn();
          throw gate.refusal;
        }
        try {
          await pace();
          await answer(ctx, name, waitMs, passage);
        } finally {
          passage.leave();
        }
      },
    },
  ];
}

function answerOf({ matched, connected, uncounted, receipts, receiptCounts }: PublishOutcome): object {
  const clients = receipts?.map(({ clientId, outcome }) => ({ clientID: clientId, outcome }));
  return {
    matched,
    connected,
    ...(uncounted && { uncounted }),
    ...(clients && { clients, outcomes: receiptCounts }),
  };
}

function itemOf(given: unknown, waitMs: number | undefined): PublishItem {
  if (typeof given !== "object" || given === null || Array.isArray(given)) throw problem(400, invalidJson);
  const item = readPublishItem(given as Record<string, unknown>);
  if (waitMs !== undefined && item.message.qos === 0) {
    throw problem(400, "wait=acked needs qos 1 or 2: nothing acknowledges a message of qos 0");
  }
  return item;
}

function laneOf(given: unknown): string {
  const { topic, clientID } = (typeof given === "object" && given !== null ? given : {}) as Record<string, unknown>;
  return typeof clientID === "string" ? `client ${clientID}` : `topic ${typeof topic === "string" ? topic : ""}`;
}

/** Of `?wait=acked&timeout=5s` the milliseconds; undefined where nobody waits. */
function wantedWait(ctx: ParameterizedContext): number | undefined {
  const [wait, timeout] = ["wait", "timeout"].map((name) => [ctx.query[name]].flat().at(-1));
  if (wait === undefined) {
    if (timeout !== undefined) throw problem(400, "timeout goes with wait=acked");
    return undefined;
  }
  if (wait !== "acked") throw problem(400, "wait must be acked");
  if (timeout === undefined) return usualWaitMs;
  const parts = /^(\d{1,6}(?:\.\d{1,3})?)(ms|s)?$/.exec(timeout);
  const ms = parts ? Number(parts[1]) * (parts[2] === "ms" ? 1 : 1000) : 0;
  if (!(ms > 0 && ms <= maxWaitMs)) {
    throw problem(400, `timeout must be a time such as 5s or 500ms, at most ${maxWaitMs / 1000}s`);
  }
  return ms;
}
