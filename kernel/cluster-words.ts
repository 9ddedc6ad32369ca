/** Messages as one node tells another of them, beside the log: JSON, for these are few. */
import type { ClusterMessage } from "./cluster-engine.ts";

export interface ToldMessage extends Omit<ClusterMessage, "payload" | "properties"> {
  readonly payload: string;
  readonly properties: ClusterMessage["properties"];
  /** Base64, out of the properties. */
  readonly correlationData: string | undefined;
}

export function tellMessage({ payload, properties, ...rest }: ClusterMessage): ToldMessage {
  const { correlationData, ...others } = properties ?? {};
  return {
    ...rest,
    payload: payload.toString("base64"),
    properties: properties && others,
    correlationData: correlationData?.toString("base64"),
  };
}

export function hearMessage({ payload, properties, correlationData, ...rest }: ToldMessage): ClusterMessage {
  const data = correlationData === undefined ? undefined : Buffer.from(correlationData, "base64");
  return {
    ...rest,
    // JSON leaves out what is undefined.
    from: rest.from,
    to: rest.to,
    receipt: rest.receipt,
    payload: Buffer.from(payload, "base64"),
    properties: data ? { ...properties, correlationData: data } : properties,
  };
}
