/** Templates over a packet, its client and its payload; the only importer of liquidjs. */
import type { Fault, FilterContext } from "@sluice/kernel";
import { Context, Liquid } from "liquidjs";

/**
 * Renders to text. Throws a fault with `poison: true` where the template can't be rendered with this scope, and one that
 * says nothing of it where that takes too long.
 */
export type Template<S extends object = TemplateScope> = (scope: S) => string;

/** What `{{ ... }}` can name. Own properties only: nothing of JavaScript's is in reach. */
export interface TemplateScope {
  readonly topic: string;
  /** The levels of the topic: `levels[0]` is the first. */
  readonly levels: readonly string[];
  readonly client: Readonly<Record<string, unknown>>;
  readonly packet: Readonly<Record<string, unknown>>;
  /** MQTT 5 user properties by name; the last of equal names. */
  readonly properties: Readonly<Record<string, string>>;
  /** The payload as JSON; undefined where it is none. */
  readonly payload: unknown;
}

/**
 * Bounds of one rendering, so that no payload and no template can hold the event loop. They count work: by the clock on the
 * wall (liquidjs' `renderLimit`) a record would fail because the machine was busy with something else.
 */
const limits = { parseLimit: 10_000, memoryLimit: 1_000_000 };
/** Parts of the template that are rendered, each round of a loop anew. */
const maxSteps = 20_000;
/** Milliseconds that this thread has computed, for steps that cost a lot each. They count once as many have gone by. */
const maxComputingMs = 50;
const outOfTime = `a template takes more than ${maxComputingMs} ms to render`;

/** Names, filters and tags work on what is there; files can't be read, as there is no `fs` to find any. */
function createEngine(): Liquid {
  return new Liquid({
    ownPropertyOnly: true,
    strictFilters: true,
    lenientIf: true,
    relativeReference: false,
    templates: {},
    ...limits,
  });
}

/**
 * Compiles once. Text without `{{` or `{%` is what it is.
 *
 * @param missing what becomes of a name that the scope does not have: it renders empty, or the rendering throws (but in
 *   the condition of an `if`, and before the filter `default`)
 */
export function compileTemplate<S extends object = TemplateScope>(
  text: string,
  missing: "empty" | "throws" = "empty",
): Template<S> {
  if (!isTemplate(text)) return () => text;
  const engine = createEngine();
  const parsed = engine.parse(text);
  const options = { strictVariables: missing === "throws", sync: true };
  return (scope) => {
    const context = new Context(scope, engine.options, options, { liquid: engine });
    // It is asked before each step, and shared with the contexts that this one brings forth.
    context.renderLimit.check = createStepLimit();
    try {
      return String(engine.renderSync(parsed, context));
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      const fault: Fault = new Error(reason, { cause: error });
      // Here alone it may have been something else, such as a long collection of garbage.
      throw reason.includes(outOfTime) ? fault : Object.assign(fault, { poison: true });
    }
  };
}

function createStepLimit(): () => void {
  const startedAt = performance.now();
  let steps = 0;
  let since: NodeJS.CpuUsage | undefined;
  return () => {
    if (++steps > maxSteps) throw new Error(`a template takes more than ${maxSteps} steps to render`);
    // Asking for the thread's time costs ten times as much, and few need it.
    if (!since && performance.now() - startedAt < maxComputingMs) return;
    since ??= process.threadCpuUsage();
    const { user, system } = process.threadCpuUsage(since);
    if (user + system > maxComputingMs * 1000) throw new Error(outOfTime);
  };
}

export function isTemplate(text: string): boolean {
  return text.includes("{{") || text.includes("{%");
}

export function templateProblem(text: string): string | undefined {
  if (!isTemplate(text)) return undefined;
  try {
    createEngine().parse(text);
    return undefined;
  } catch (error) {
    const reason = error instanceof Error ? (error.message.split("\n")[0] ?? "") : String(error);
    return `the template can't be read: ${reason}`;
  }
}

/** Levels and payload are worked out where a template asks for them, once a packet. */
export function createScope(ctx: FilterContext): TemplateScope {
  const { client, packet } = ctx;
  const topic = ctx.type === "Publish" ? ctx.packet.topic : "";
  let levels: readonly string[] | undefined;
  let parsed: { value: unknown } | undefined;
  return {
    topic,
    get levels() {
      return (levels ??= topic.split("/"));
    },
    client: {
      id: client.id,
      username: client.username,
      address: client.address,
      protocolVersion: client.protocolVersion,
    },
    packet: { type: ctx.type, ...packetFields(packet) },
    properties: Object.fromEntries(userPropertiesOf(packet)),
    get payload() {
      parsed ??= { value: ctx.type === "Publish" ? parseJson(ctx.packet.payload) : undefined };
      return parsed.value;
    },
  };
}

function packetFields(packet: FilterContext["packet"]): Record<string, unknown> {
  if (!("topic" in packet)) return {};
  return { qos: packet.qos, retain: packet.retain, dup: packet.dup, packetId: packet.packetId };
}

export function parseJson(payload: Buffer): unknown {
  try {
    return JSON.parse(payload.toString());
  } catch {
    return undefined;
  }
}

/** MQTT 5: `packet.properties.userProperties`, as an object (a repeated name has a list) or as pairs. Nothing of a 3.x client. */
export function userPropertiesOf(packet: object): [string, string][] {
  const properties: unknown = "properties" in packet ? packet.properties : undefined;
  if (typeof properties !== "object" || properties === null || !("userProperties" in properties)) return [];
  const found: unknown = properties.userProperties;
  if (typeof found !== "object" || found === null) return [];
  const pairs: unknown[] = Array.isArray(found) ? found : Object.entries(found);
  return pairs.flatMap((pair): [string, string][] => {
    if (!Array.isArray(pair) || typeof pair[0] !== "string") return [];
    const value: unknown = Array.isArray(pair[1]) ? pair[1].at(-1) : pair[1];
    return typeof value === "string" ? [[pair[0], value]] : [];
  });
}
