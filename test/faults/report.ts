/** What a run of the fault harness found. */
import type { KafkaRecord } from "../helpers/kafka.ts";
import type { Device } from "./device.ts";

export interface Report {
  readonly published: number;
  readonly acked: number;
  /** Different messages that are in Kafka. */
  readonly found: number;
  /** Acknowledged, and not in Kafka. */
  readonly missing: readonly string[];
  /** Records beyond the first of a message. */
  readonly duplicated: number;
  /** Of those, by messages that no reconnect and no restart of the gateway accounts for. */
  readonly unexplained: readonly string[];
  /** Messages that came first to Kafka behind a later one of their client. */
  readonly outOfOrder: readonly string[];
  readonly reconnects: number;
}

/** @param kills when the gateway was killed, as `performance.now()` counts; with a disk buffer it then sends some again */
export function judge(devices: readonly Device[], records: readonly KafkaRecord[], kills: readonly number[]): Report {
  const copies = new Map<string, number>();
  const newest = new Map<string, number>();
  const outOfOrder: string[] = [];
  for (const { value } of records) {
    const message = String(value);
    const [clientId = "", number = ""] = message.split(" ");
    const known = copies.get(message) ?? 0;
    copies.set(message, known + 1);
    if (known > 0) continue;
    if (Number(number) < (newest.get(clientId) ?? -1)) outOfOrder.push(message);
    else newest.set(clientId, Number(number));
  }
  const missing: string[] = [];
  const unexplained: string[] = [];
  let duplicated = 0;
  for (const { clientId, acked, resent } of devices) {
    for (const [number, ackedAt] of acked) {
      const message = `${clientId} ${number}`;
      const found = copies.get(message) ?? 0;
      if (found === 0) missing.push(message);
      if (found < 2) continue;
      duplicated += found - 1;
      if (!resent.has(number) && !kills.some((at) => at > ackedAt)) unexplained.push(message);
    }
  }
  const acked = devices.reduce((sum, device) => sum + device.acked.size, 0);
  const reconnects = devices.reduce((sum, device) => sum + device.reconnects, 0);
  return { published: acked, acked, found: copies.size, missing, duplicated, unexplained, outOfOrder, reconnects };
}

export function describe(report: Report): string {
  const { acked, found, missing, duplicated, unexplained, outOfOrder, reconnects } = report;
  const lines = [
    `acknowledged            ${acked}`,
    `found in Kafka          ${found}`,
    `acked and missing       ${missing.length}`,
    `duplicated              ${duplicated}, ${unexplained.length} of them by no reconnect or restart`,
    `out of order            ${outOfOrder.length}`,
    `reconnects              ${reconnects}`,
  ];
  for (const [what, messages] of Object.entries({ missing, unexplained, outOfOrder })) {
    if (messages.length > 0)
      lines.push(`${what}: ${messages.slice(0, 10).join(", ")}${messages.length > 10 ? ", ..." : ""}`);
  }
  return lines.join("\n");
}
