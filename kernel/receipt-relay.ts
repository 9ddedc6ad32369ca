/** Carries what becomes of a message from the node that delivers it to the one that waits for it. */
import type { ClusterEngine, ClusterMessage } from "./cluster-engine.ts";
import type { PublishOptions, Receipt } from "./store.ts";

/** @param sharedBy the shared subscription whose member the client is */
type Receipts = (clientId: string, outcome: Receipt, sharedBy?: string) => void;

export interface ReceiptRelay {
  /** Somebody waits: the message has to carry the answer. `end` when nobody does any more. */
  wait(receipts: Receipts): { readonly token: string; readonly end: () => void };
  /** Who is to be told of a message's deliveries here. */
  readonly of: (message: ClusterMessage, sharedBy?: string) => PublishOptions["receipts"];
  /** Another node tells. */
  told(body: Buffer): void;
}

/** Publishes that wait for their receipts; the oldest is not waited for any more. */
const maxWaiting = 10_000;

const sendMs = 2000;

export function createReceiptRelay(proxy: string, engine: ClusterEngine): ReceiptRelay {
  const waiting = new Map<string, Receipts>();
  let count = 0;

  return {
    wait(receipts) {
      const number = (count++).toString(36);
      waiting.set(number, receipts);
      if (waiting.size > maxWaiting) waiting.delete(waiting.keys().next().value ?? "");
      return { token: `${number}@${engine.node.id}`, end: () => void waiting.delete(number) };
    },
    of({ receipt }, sharedBy) {
      if (receipt === undefined) return undefined;
      const at = receipt.indexOf("@");
      const number = receipt.slice(0, at);
      const node = receipt.slice(at + 1);
      if (node === engine.node.id) {
        const told = waiting.get(number);
        return told && sharedBy !== undefined ? (clientId, outcome) => told(clientId, outcome, sharedBy) : told;
      }
      return (clientId, outcome) => {
        // Who waits has asked who is here.
        if (outcome === "waiting") return;
        const body = Buffer.from(JSON.stringify({ proxy, number, clientId, outcome, sharedBy }));
        engine.control.request(node, "receipt", body, sendMs).catch(() => undefined);
      };
    },
    told(body) {
      const { number, clientId, outcome, sharedBy } = JSON.parse(body.toString()) as {
        number: string;
        clientId: string;
        outcome: Receipt;
        sharedBy?: string;
      };
      waiting.get(number)?.(clientId, outcome, sharedBy);
    },
  };
}
