/** The packet ids of QoS 2 messages that clients send, from PUBLISH to PUBREL: they keep a message from coming in twice. */
import type { Ledger } from "./ledger.ts";
import type { Session } from "./session.ts";

export interface InboundIds {
  /** Of those that are durable. */
  has(session: Session, packetId: number): boolean;
  /** It counts once what was written with it is durable: `settle` says so. */
  add(session: Session, packetId: number): void;
  settle(session: Session, packetId: number): void;
  delete(session: Session, packetId: number): void;
  /** Those that {@link has} tells of. */
  ids(session: Session): Iterable<number>;
}

export function createInboundIds(ledger: Ledger | undefined): InboundIds {
  const lasts = (session: Session): boolean => ledger !== undefined && session.expirySec > 0;
  const none: ReadonlySet<number> = new Set();
  return {
    has: (session, packetId) =>
      session.inbound?.has(packetId) === true && session.unsafeInbound?.has(packetId) !== true,
    ids: ({ inbound, unsafeInbound }) => (inbound ?? none).difference(unsafeInbound ?? none),
    add(session, packetId) {
      (session.inbound ??= new Set()).add(packetId);
      (session.unsafeInbound ??= new Set()).add(packetId);
      if (lasts(session)) ledger?.inbound(session, packetId);
    },
    settle: (session, packetId) => void session.unsafeInbound?.delete(packetId),
    delete(session, packetId) {
      session.unsafeInbound?.delete(packetId);
      if (session.inbound?.delete(packetId) && lasts(session)) ledger?.forgetInbound(session, packetId);
    },
  };
}
