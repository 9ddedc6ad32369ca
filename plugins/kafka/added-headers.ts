/** The headers that `addHeaders` names. */
import { hash, randomUUID } from "node:crypto";
import { hostname } from "node:os";
import type { FilterContext, Host } from "@sluice/kernel";
import type { AddedHeader } from "./config.ts";
import { setHeader } from "./headers.ts";
import { userPropertiesOf } from "./template.ts";

export interface AddedHeaders {
  /** What a client chose the names of, so that it can't stand in for ours. */
  readonly beforeOwn?: ((headers: (string | Buffer)[], ctx: FilterContext) => void) | undefined;
  readonly afterOwn?: ((headers: (string | Buffer)[], ctx: FilterContext, now: number) => void) | undefined;
}

export function createAddedHeaders(wanted: readonly AddedHeader[], host: Host): AddedHeaders {
  const names = new Set(wanted);
  const node = hostname();
  const pipeline = host.name.split("/")[0] ?? "";
  let proxies: { version: number; names: Map<string, string> } | undefined;

  /** The proxy whose rules name this pipeline; several, separated by commas, where more than one does. */
  function proxyOf(type: string): string {
    const version = host.config.version();
    if (proxies?.version !== version) {
      proxies = { version, names: new Map() };
      for (const document of host.config.documents()) {
        if (document.kind !== "MQTTProxy" || !Array.isArray(document["rules"])) continue;
        for (const rule of document["rules"] as { when: { packetType: string }; pipeline: string }[]) {
          if (rule.pipeline !== pipeline) continue;
          const known = proxies.names.get(rule.when.packetType);
          proxies.names.set(rule.when.packetType, known === undefined ? document.name : `${known},${document.name}`);
        }
      }
    }
    return proxies.names.get(type) ?? "";
  }

  function afterOwn(headers: (string | Buffer)[], ctx: FilterContext, now: number): void {
    if (names.has("receivedAt")) setHeader(headers, "receivedAt", String(now));
    if (names.has("proxy")) setHeader(headers, "proxy", proxyOf(ctx.type));
    if (names.has("node")) setHeader(headers, "node", node);
    if (ctx.type !== "Publish") return;
    const { qos, retain, dup, packetId } = ctx.packet;
    if (names.has("qos")) setHeader(headers, "qos", String(qos));
    if (names.has("retain")) setHeader(headers, "retain", String(retain));
    if (names.has("dup")) setHeader(headers, "dup", String(dup));
    if (names.has("packetId") && packetId !== undefined) setHeader(headers, "packetId", String(packetId));
    if (names.has("messageId")) setHeader(headers, "messageId", messageIdOf(ctx.client.id, ctx.packet));
  }

  return {
    beforeOwn: names.has("userProperties")
      ? (headers, { packet }) => {
          for (const [name, value] of userPropertiesOf(packet)) setHeader(headers, name, value);
        }
      : undefined,
    afterOwn: wanted.some((name) => name !== "userProperties") ? afterOwn : undefined,
  };
}

/**
 * A client that sends again, to this gateway or after a crash to another, sends the same topic and payload under the same
 * packet id, and that is all that it says about it. At QoS 0 nothing is sent again.
 */
function messageIdOf(clientId: string, packet: (FilterContext & { type: "Publish" })["packet"]): string {
  const { topic, payload, packetId } = packet;
  if (packetId === undefined) return randomUUID();
  const head = Buffer.from(JSON.stringify([clientId, packetId, topic]));
  return hash("sha256", Buffer.concat([head, payload]), "base64url").slice(0, 22);
}
