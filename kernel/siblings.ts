/** What the parts of one proxy in several workers have to tell each other, past the store: types only. */
import type { Outcome } from "./outcome.ts";
import type { Will } from "./plugin.ts";
import type { WillOfClient } from "./store.ts";

export interface Siblings {
  /** Who hears of the others, from now on. */
  listen(part: ProxyPart): void;
  /** Its pipelines run. */
  ready(): void;
  /** This client's will waits here for its delay; or it does not any more. */
  willWaits(clientId: string, waits: boolean): void;
  /** `connectionLimit` of all workers: of an address before authentication, of the proxy after it. */
  admit(of: "address" | "proxy", address: string, bytes: number): Promise<boolean>;
}

/** The part of a proxy in one worker, as the others see it. */
export interface ProxyPart {
  /** Packet ids of the client's QoS 2 messages that are in a pipeline here. */
  underWay(clientId: string): readonly number[];
  /** Calls `settled` when this one has come out; false where it is not here. */
  join(clientId: string, packetId: number, settled: (outcome: Outcome) => void): boolean;
  /** It is in a pipeline elsewhere, and the client is here now; the function returned is told what came of it. */
  begunElsewhere(clientId: string, packetId: number): (outcome: Outcome) => void;
  /** The client is connected to another worker. @param resumed with the session that it had here */
  back(clientId: string, resumed: boolean): void;
  /** Its session was removed. */
  ended(clientId: string): void;
  /** The worker that this client was connected to has ended. @param said it has left the pipelines */
  speakFor(words: LastWords, said: () => void): void;
}

/** What is still to be said for a client. */
export interface LastWords {
  readonly client: WillOfClient["client"];
  /** It is due. */
  readonly will: Will | undefined;
  /** The number of the connection that `presence` is to tell the end of. */
  readonly connection: number | undefined;
}
