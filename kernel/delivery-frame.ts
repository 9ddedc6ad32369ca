/** A delivery as bytes: encoded once for all subscribers that get it in the same form, then patched for each. */
import { encodePublishTemplate, publishFromTemplate, type PublishTemplate } from "./encoder.ts";
import type { ProtocolVersion } from "./packet.ts";
import type { Delivery, StoredMessage } from "./store.ts";

/** What a message's `frames` hold: its encoded forms, each made by the first subscriber that needs it. */
interface Frames {
  /** Without subscription identifiers: by QoS, RETAIN, version and alias. */
  readonly plain: (PublishTemplate | undefined)[];
  /** With them. */
  keyed: Map<string, PublishTemplate> | undefined;
}

/** A topic alias for this delivery. */
export interface DeliveryAlias {
  readonly id: number;
  readonly isNew: boolean;
}

export interface FrameOptions {
  readonly dup: boolean;
  /** Milliseconds since the epoch, for what is left of the message expiry. */
  readonly now?: () => number;
  readonly alias?: DeliveryAlias | undefined;
}

/** At QoS 0 maybe the bytes that all subscribers share: do not change them. @param template {@link templateOf} it */
export function encodeDelivery(
  { message, qos, packetId }: Delivery,
  template: PublishTemplate,
  o: FrameOptions,
): Buffer {
  return publishFromTemplate(template, {
    packetId: qos === 0 ? undefined : packetId,
    dup: o.dup,
    messageExpiry: template.expiryAt < 0 ? undefined : secondsLeft(message, o.now?.()),
    alias: o.alias?.id,
  });
}

/** Nothing but the packet id differs from one subscriber to the next. */
export function isPlain({ expiryAt, aliasAt }: PublishTemplate): boolean {
  return expiryAt < 0 && aliasAt < 0;
}

/** What it was published with, less the time that it waited [MQTT-3.3.2-6]. Sent again at the end of it, 1 is left. */
function secondsLeft({ expiresAt, properties }: StoredMessage, now: number | undefined): number | undefined {
  if (now === undefined) return properties?.messageExpiry;
  return Math.max(1, Math.ceil((expiresAt - now) / 1000));
}

/** The delivery's bytes, all but what differs from one subscriber to the next; made once for all that get the same. */
export function templateOf(
  { message, qos, retain, identifiers }: Delivery,
  protocolVersion: ProtocolVersion,
  deliveryAlias?: DeliveryAlias,
): PublishTemplate {
  const frames = (message.frames ??= { plain: [], keyed: undefined }) as Frames;
  const isV5 = protocolVersion === 5;
  const alias = deliveryAlias === undefined ? "none" : deliveryAlias.isNew ? "define" : "use";
  const index = qos * 2 + (retain ? 1 : 0) + (isV5 ? 6 : 0) + aliasOffsets[alias];
  if (!isV5 || identifiers.length === 0) {
    return (frames.plain[index] ??= encodePublishTemplate(message, {
      qos,
      retain,
      protocolVersion,
      identifiers: [],
      alias,
    }));
  }
  const keyed = (frames.keyed ??= new Map());
  const key = `${index} ${identifiers.join()}`;
  let template = keyed.get(key);
  if (!template) {
    template = encodePublishTemplate(message, { qos, retain, protocolVersion, identifiers, alias });
    keyed.set(key, template);
  }
  return template;
}

const aliasOffsets = { none: 0, define: 6, use: 12 };
