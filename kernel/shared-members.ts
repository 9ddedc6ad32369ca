/** stub */
import type { ClusterEngine, ClusterMessage, ClusterProxy, LogPosition } from "./cluster-engine.ts";
import type { SharedMemberships } from "./cluster-session.ts";
import type { Deliveries } from "./deliveries.ts";
import type { LogTail } from "./log-tail.ts";
import type { Logger } from "./plugin.ts";
import type { KeptMessage } from "./session.ts";
import type { Awaitable, PublishOptions } from "./store.ts";

export interface SharedMembers extends SharedMemberships {
  handOut(message: ClusterMessage, position: LogPosition | undefined): void;
  answer(kind: string, body: Buffer, from: string): Awaitable<Buffer | void>;
  peerChanged(): void;
  close(): Promise<void>;
}

export function isGroup(clientId: string): boolean {
  return clientId.startsWith("\u0000");
}

export function createSharedMembers(_deps: {
  readonly proxy: string;
  readonly engine: ClusterEngine;
  readonly cluster: ClusterProxy;
  readonly tail: LogTail;
  readonly deliveries: Deliveries;
  readonly logger: Logger;
  kept(message: ClusterMessage, position: LogPosition | undefined): KeptMessage;
  receiptsOf(message: ClusterMessage): PublishOptions["receipts"];
}): SharedMembers {
  return {
    async join() {},
    leave() {},
    settled() {},
    returned() {},
    here() {},
    handOut() {},
    answer() {},
    peerChanged() {},
    async close() {},
  };
}
