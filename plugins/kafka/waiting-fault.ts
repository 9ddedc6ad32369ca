import type { Fault } from "@sluice/kernel";

/** No record is to blame for Kafka or the disk being away or slow: however often its packet comes, it is no poison. */
export function waitingFault(error: string | Error): Fault {
  return Object.assign(typeof error === "string" ? new Error(error) : error, { poison: false });
}
