/** What no schema can say: whether the documents of a config fit each other. */
import type { Entry, Issues } from "./entry.ts";
import { isMap } from "./entry.ts";
import { plainKind } from "./kind-name.ts";
import type { ReadListener } from "./listener-options.ts";
import { patternFault } from "./plugin-trust.ts";
import type { FilterKind, PacketType } from "./plugin.ts";
import { packetTypes } from "./plugin-code.ts";
import type { Path } from "./schema.ts";
import type { Address, IsolationSpec } from "./spec.ts";
import { didYouMean } from "./suggest.ts";
import { topicNameProblem } from "./topics.ts";

export interface FilterEntry extends Entry {
  /** Undefined where its kind could not be loaded, which is a problem already reported. */
  readonly code: FilterKind | undefined;
  /** As it is written, checked by the pipeline's schema. */
  readonly isolate: unknown;
  readonly isolation: IsolationSpec | undefined;
}

export interface PipelineEntry extends Entry {
  readonly filters: readonly FilterEntry[];
}

/** A step of a flow as far as it is well-formed. */
interface Step {
  readonly filter: string;
  readonly alias: string;
  readonly namespace: string;
  readonly path: Path;
  readonly jumpIf: Readonly<Record<string, string>>;
}

const end = "END";
const listOf = (value: unknown): unknown[] => (Array.isArray(value) ? value : []);

/** What the schema can't say of `plugins.allow` and `deny`. */
export function checkTrust(gateway: Entry, found: Issues): boolean {
  const plugins = gateway.options["plugins"];
  let isValid = true;
  for (const list of ["allow", "deny"]) {
    for (const [index, text] of listOf(isMap(plugins) ? plugins[list] : undefined).entries()) {
      const fault = typeof text === "string" ? patternFault(text) : undefined;
      if (fault === undefined) continue;
      found.problem(gateway.where(["plugins", list, index]), fault);
      isValid = false;
    }
  }
  return isValid;
}

/** Two documents of one kind, or two filters of one pipeline, by the same name. */
export function checkNames(entries: readonly Entry[], found: Issues): void {
  const first = new Map<string, Entry>();
  for (const entry of entries) {
    if (entry.name === "") continue;
    const key = JSON.stringify([plainKind(entry.kind), entry.name]);
    const other = first.get(key);
    if (other === undefined) first.set(key, entry);
    else
      found.problem(
        entry.where(["name"]),
        `another ${entry.kind} has the name "${entry.name}" already (${place(other)}): rename one`,
      );
  }
}

const place = ({ where }: Pick<Entry, "where">, path: Path = []): string => where(path).split(" > ")[0]!;

export function checkPipeline(pipeline: PipelineEntry, found: Issues): void {
  const { protocol } = pipeline.options;
  if (typeof protocol === "string" && protocol !== "" && protocol.toUpperCase() !== "MQTT") {
    found.problem(pipeline.where(["protocol"]), `"${protocol}" is not supported: write MQTT, or leave it out`);
  }
  if (pipeline.options["resilience"] !== undefined) {
    found.warning(pipeline.where(["resilience"]), "is ignored: its policies are for HTTP backends");
  }
  const names = new Map<string, FilterEntry>();
  for (const filter of pipeline.filters) {
    if (filter.name === end)
      found.problem(filter.where(["name"]), `${end} is built in and can't be the name of a filter: rename it`);
    if (filter.name === "") continue;
    const other = names.get(filter.name);
    if (other === undefined) names.set(filter.name, filter);
    else
      found.problem(
        filter.where(["name"]),
        `another filter of this pipeline has the name "${filter.name}" already (${place(other)}): rename one`,
      );
  }
  checkFlow(pipeline, names, found);
}

function checkFlow(pipeline: PipelineEntry, filters: ReadonlyMap<string, FilterEntry>, found: Issues): void {
  const steps = flowOf(pipeline);
  const aliases = new Map<string, number>();
  for (const [index, step] of steps.entries()) {
    // Each of Easegress' namespaces has a packet of its own; every MQTT filter needs the one there is.
    if (step.namespace !== "" && step.namespace !== "DEFAULT") {
      found.problem(
        pipeline.where([...step.path, "namespace"]),
        "namespaces are not supported: remove it (all filters of a pipeline work on the one packet)",
      );
    }
    const field = step.alias === step.filter ? "filter" : "alias";
    if (step.filter !== end && !filters.has(step.filter)) {
      found.problem(
        pipeline.where([...step.path, "filter"]),
        `no filter of this pipeline is named "${step.filter}"${didYouMean(step.filter, [...filters.keys()])}`,
      );
    }
    if (step.alias === end) {
      if (step.filter !== end)
        found.problem(
          pipeline.where([...step.path, "alias"]),
          `${end} is built in and can't be an alias: choose another`,
        );
      continue;
    }
    if (aliases.has(step.alias)) {
      found.problem(
        pipeline.where([...step.path, field]),
        `another step of this flow is named "${step.alias}" already: give this one an alias of its own`,
      );
    } else aliases.set(step.alias, index);
  }
  for (const [index, step] of steps.entries())
    checkJumps(pipeline, step, index, aliases, filters.get(step.filter), found);
}

function checkJumps(
  pipeline: PipelineEntry,
  step: Step,
  index: number,
  aliases: ReadonlyMap<string, number>,
  filter: FilterEntry | undefined,
  found: Issues,
): void {
  for (const [result, target] of Object.entries(step.jumpIf)) {
    const where = pipeline.where([...step.path, "jumpIf", result]);
    const results = filter?.code?.results;
    if (step.filter === end) {
      found.problem(where, `${end} has no result to jump on: remove jumpIf`);
    } else if (results !== undefined && result !== "" && !results.includes(result)) {
      const declared = results.length === 0 ? "it has none" : `its results are ${results.join(", ")}`;
      found.problem(
        where,
        `${filter?.kind} never returns "${result}"${didYouMean(result, results) || `: ${declared}, and "" for success`}`,
      );
    }
    if (target === end) continue;
    const to = aliases.get(target);
    if (to === undefined) {
      found.problem(
        where,
        `no step of this flow is named "${target}"${didYouMean(target, [...aliases.keys(), end]) || `: jump to a later one, or to ${end}`}`,
      );
    } else if (to <= index) {
      found.problem(where, `"${target}" is not later in the flow: a jump goes forwards only`);
    }
  }
}

/** The well-formed steps of a pipeline's flow. */
export function flowOf(pipeline: Entry): Step[] {
  return listOf(pipeline.options["flow"]).flatMap((node, index) => {
    if (!isMap(node) || typeof node["filter"] !== "string") return [];
    const { filter, alias, namespace } = node;
    const jumps = isMap(node["jumpIf"]) ? Object.entries(node["jumpIf"]) : [];
    return {
      filter,
      alias: typeof alias === "string" && alias !== "" ? alias : filter,
      namespace: typeof namespace === "string" ? namespace : "",
      path: ["flow", index],
      jumpIf: Object.fromEntries(jumps.filter((jump): jump is [string, string] => typeof jump[1] === "string")),
    };
  });
}

export interface KnownPipelines {
  readonly byName: ReadonlyMap<string, PipelineEntry>;
  /** Every document could be read. Otherwise one that is missed may well be written. */
  readonly areAll: boolean;
}

/** @param isOpen some listener of it asks for no certificate */
export function checkRules(proxy: Entry, known: KnownPipelines, isOpen: boolean, found: Issues): void {
  const ruled = new Set<string>();
  for (const [index, rule] of listOf(proxy.options["rules"]).entries()) {
    if (!isMap(rule)) continue;
    const packetType = isMap(rule["when"]) ? rule["when"]["packetType"] : undefined;
    if (typeof packetType === "string") {
      if (ruled.has(packetType)) {
        found.problem(
          proxy.where(["rules", index, "when", "packetType"]),
          `another rule is for ${packetType} already: one packet type, one rule`,
        );
      }
      ruled.add(packetType);
    }
    checkUse(proxy, ["rules", index, "pipeline"], rule["pipeline"], packetType, known, found);
  }
  if (isOpen && !ruled.has("Connect")) {
    found.warning(proxy.where(), "has no rule for Connect packets: everybody may connect, without a password");
  }
}

/** `presence`: its pipeline must take Publish packets, and its topic be one. */
export function checkPresence(proxy: Entry, known: KnownPipelines, found: Issues): void {
  const { presence } = proxy.options;
  if (!isMap(presence)) return;
  checkUse(proxy, ["presence", "pipeline"], presence["pipeline"], "Publish", known, found);
  const { topic } = presence;
  const invalid = typeof topic === "string" && topic !== "" ? topicNameProblem(topic) : undefined;
  if (invalid !== undefined) found.problem(proxy.where(["presence", "topic"]), `is no topic name: ${invalid}`);
}

/** `onPoison` and `deadLetter`: a pipeline that takes Publish packets, and not the one that they faulted in. */
export function checkDeadLetter(proxy: Entry, known: KnownPipelines, found: Issues): void {
  const { onPoison, deadLetter, rules } = proxy.options;
  if (!isMap(deadLetter)) {
    if (onPoison === "deadLetter") {
      found.problem(proxy.where(["onPoison"]), "needs deadLetter: set deadLetter.pipeline to the name of a Pipeline");
    }
    return;
  }
  if (onPoison === "close") found.warning(proxy.where(["deadLetter"]), "is only used with onPoison: deadLetter");
  const { pipeline } = deadLetter;
  checkUse(proxy, ["deadLetter", "pipeline"], pipeline, "Publish", known, found);
  const isCycle = listOf(rules).some(
    (rule) =>
      isMap(rule) && isMap(rule["when"]) && rule["when"]["packetType"] === "Publish" && rule["pipeline"] === pipeline,
  );
  if (typeof pipeline === "string" && isCycle) {
    found.problem(
      proxy.where(["deadLetter", "pipeline"]),
      `"${pipeline}" is the pipeline of the Publish rule, in which the packet has faulted: name another one`,
    );
  }
}

/** Whether there is a pipeline of this name, and it can be used for these packets. */
function checkUse(
  proxy: Entry,
  path: Path,
  name: unknown,
  packetType: unknown,
  { byName, areAll }: KnownPipelines,
  found: Issues,
): void {
  if (typeof name !== "string") return;
  const pipeline = byName.get(name);
  if (pipeline === undefined) {
    if (!areAll) return;
    const hint = didYouMean(name, [...byName.keys()]) || ": write a Pipeline document of that name";
    found.problem(proxy.where(path), `no Pipeline is named "${name}"${hint}`);
  } else if (isPacketType(packetType)) {
    checkPackets(proxy, path, packetType, pipeline, found);
  }
}

const isPacketType = (value: unknown): value is PacketType => (packetTypes as readonly unknown[]).includes(value);

function checkPackets(proxy: Entry, path: Path, packetType: PacketType, pipeline: PipelineEntry, found: Issues): void {
  const steps = flowOf(pipeline);
  const used = steps.length === 0 ? undefined : new Set(steps.map((step) => step.filter));
  for (const filter of pipeline.filters) {
    if (used?.has(filter.name) === false || filter.code === undefined) continue;
    const { packets } = filter.code;
    if (packets.includes(packetType)) continue;
    found.problem(
      proxy.where(path),
      `pipeline "${pipeline.name}" can't be used for ${packetType} packets: its filter "${filter.name}" (${filter.kind}) handles ${packets.join(", ")} only`,
    );
  }
}

/** A listener without a host has every address, so it clashes with any other on its port. */
export function checkAddresses(listeners: readonly ReadListener[], found: Issues): void {
  const taken: ReadListener[] = [];
  for (const listener of listeners) {
    const { proxy, path, spec } = listener;
    if ("port" in spec.address && spec.address.port === 0) {
      found.warning(proxy.where(path), "is 0: any free port is taken, another one at each start");
      continue;
    }
    const clash = taken.find((other) => overlap(other.spec.address, spec.address));
    if (clash !== undefined) {
      const value = "port" in spec.address ? spec.address.port : "this path";
      const whose = clash.spec.name === "default" ? "" : `listener "${clash.spec.name}" of `;
      found.problem(
        proxy.where(path),
        `${value} is used by ${whose}the MQTTProxy "${clash.proxy.name}" already (${place(clash.proxy, clash.path)}): give each its own`,
      );
    }
    taken.push(listener);
  }
}

/** @param services those in role `store`, of which there can be one */
export function checkStore(services: readonly Entry[], found: Issues): void {
  const [first, ...others] = services;
  for (const other of others) {
    found.problem(
      other.where(["kind"]),
      `${first?.name} (${first?.kind}) is the session store already, and a gateway has one: remove one of the two`,
    );
  }
}

function overlap(one: Address, other: Address): boolean {
  if ("socket" in one || "socket" in other) return "socket" in one && "socket" in other && one.socket === other.socket;
  const everywhere = new Set([undefined, "0.0.0.0", "::"]);
  return one.port === other.port && (one.host === other.host || everywhere.has(one.host) || everywhere.has(other.host));
}
