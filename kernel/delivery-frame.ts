/** A delivery as bytes: encoded once for all subscribers that get it in the same form, then patched for each. */
import { encodePublishTemplate, publishFromTemplate, type PublishTemplate } from "./codec.ts";
import type { ProtocolVersion } from "./packet.ts";
import type { Delivery, StoredMessage } from "./store.ts";

/** What a message's `frames` hold: its encoded forms, each made by the first subscriber that needs it. */
interface Frames {
  /** Without subscription identifiers: by QoS, RETAIN, version and alias. */
  readonly plain: (PublishTemplate | undefined)[];
  /** With them. */
  keyed: Map<string, PublishTemplate> | undefined;
}

export interface FrameOptions {
  readonly protocolVersion: ProtocolVersion;
  readonly dup: boolean;
  /** Milliseconds since the epoch, for what is left of the message expiry. */
  readonly now?: number;
  readonly alias?: { readonly id: number; readonly isNew: boolean } | undefined;
}

/** At QoS 0 maybe the bytes that all subscribers share: do not change them. */
export function encodeDelivery(delivery: Delivery, o: FrameOptions): Buffer {
  const { message, qos, packetId } = delivery;
  const template = templateOf(delivery, o);
  return publishFromTemplate(template, {
    packetId: qos === 0 ? undefined : packetId,
    dup: o.dup,
    messageExpiry: template.expiryAt < 0 ? undefined : secondsLeft(message, o.now),
    alias: o.alias?.id,
  });
}

/** What it was published with, less the time that it waited [MQTT-3.3.2-6]. Sent again at the end of it, 1 is left. */
function secondsLeft({ expiresAt, properties }: StoredMessage, now: number | undefined): number | undefined {
  if (now === undefined) return properties?.messageExpiry;
  return Math.max(1, Math.ceil((expiresAt - now) / 1000));
}

function templateOf({ message, qos, retain, identifiers }: Delivery, o: FrameOptions): PublishTemplate {
  const frames = (message.frames ??= { plain: [], keyed: undefined }) as Frames;
  const isV5 = o.protocolVersion === 5;
  const alias = o.alias === undefined ? "none" : o.alias.isNew ? "define" : "use";
  const index = qos * 2 + (retain ? 1 : 0) + (isV5 ? 6 : 0) + aliasOffsets[alias];
  const make = (): PublishTemplate =>
    encodePublishTemplate(message, {
      qos,
      retain,
      protocolVersion: o.protocolVersion,
      identifiers: isV5 ? identifiers : [],
      alias,
    });
  if (!isV5 || identifiers.length === 0) return (frames.plain[index] ??= make());
  const keyed = (frames.keyed ??= new Map());
  const key = `${index} ${identifiers.join()}`;
  let template = keyed.get(key);
  if (!template) keyed.set(key, (template = make()));
  return template;
}

const aliasOffsets = { none: 0, define: 6, use: 12 };
