/** What becomes of a connection whose bytes are refused: it is told why, as far as it understands that, and closed. */
import type { Refusal } from "./codec.ts";
import type { CloseReason, Connection } from "./connection.ts";
import { encodeConnack, encodeConnackV5 } from "./encoder.ts";
import type { ConnackCode } from "./frame.ts";
import type { Reason } from "./plugin.ts";
import { firstError } from "./reasons.ts";

/** @param isAdmitted its CONNECT has been answered */
export function refuse(connection: Connection, refusal: Refusal, isAdmitted: boolean): void {
  const { connack, code, message } = refusal;
  if (connack !== undefined && !isAdmitted) connection.send(connackOf(connack, refusal));
  const reason = refusal.reason ?? refusalReasons[code];
  connection.close(closeReasons[code] ?? "malformedPacket", { reason, text: message });
}

/** The CONNACK to CONNECTs that can't be read. */
function connackOf(code: number, { message }: Refusal): Buffer {
  if (code < firstError) return encodeConnack(code as ConnackCode, false);
  return encodeConnackV5({ reasonCode: code, sessionPresent: false, reasonString: message });
}

const refusalReasons: Record<Refusal["code"], Reason> = {
  MALFORMED_PACKET: "malformedPacket",
  PACKET_TOO_LARGE: "packetTooLarge",
  PROTOCOL_ERROR: "protocolError",
  UNSUPPORTED_VERSION: "unsupportedProtocolVersion",
};

const closeReasons: Record<string, CloseReason> = {
  MALFORMED_PACKET: "malformedPacket",
  PACKET_TOO_LARGE: "packetTooLarge",
  PROTOCOL_ERROR: "protocolError",
  UNSUPPORTED_VERSION: "refused",
};
