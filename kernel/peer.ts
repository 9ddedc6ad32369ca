/** An admitted client: what becomes of its packets, its deliveries and its last words. */
import type { Admitted, PeerDeps } from "./admitted.ts";
import { type AuthExchange, createAuthExchange } from "./authentication.ts";
import { type InPacket } from "./codec.ts";
import { encodeAuth, pingresp } from "./encoder.ts";
import type { CloseReason } from "./connection.ts";
import { nameOf, type Outcome, reasonOf, textOf } from "./outcome.ts";
import type { AuthIn, DisconnectIn } from "./packet.ts";
import { createLane, type Job } from "./pipeline.ts";
import type { ConnectPacket, Will } from "./plugin.ts";
import { Publisher } from "./publisher.ts";
import { codes } from "./reasons.ts";
import type { Awaitable, SessionExpiry } from "./store.ts";
import { Subscriber } from "./subscriber.ts";

/** A class because there are as many as clients. */
export class Peer {
  readonly admitted: Admitted;
  private readonly deps: PeerDeps;
  private readonly publisher: Publisher;
  private readonly subscriber: Subscriber;
  private will: Will | undefined;
  private sessionExpiry: SessionExpiry;
  private reauth: AuthExchange | undefined;
  private farewell: { readonly reasonCode: number; readonly userProperties: DisconnectIn["userProperties"] };

  constructor(admitted: Admitted, deps: PeerDeps) {
    this.admitted = admitted;
    this.deps = deps;
    this.will = admitted.connect.will;
    this.sessionExpiry = admitted.sessionExpiry;
    this.farewell = silent;
    this.publisher = new Publisher(admitted, deps);
    this.subscriber = new Subscriber(admitted, deps);
  }

  /** After the CONNACK: what waited for this client is sent, oldest first. */
  attach(): void {
    this.subscriber.attach();
  }

  /** `clientPublishLimit` is new, or has changed. */
  limitPublishes(): void {
    this.publisher.limit();
  }

  /** The connection takes deliveries again. */
  drained(): void {
    this.admitted.handle.resume();
  }

  /** Its will and its Disconnect pipeline outlive it. */
  closed(why: CloseReason): void {
    const { client, handle, connect } = this.admitted;
    const { deps, will, sessionExpiry, farewell } = this;
    this.publisher.close();
    this.subscriber.close();
    this.reauth?.end("the connection has ended");
    this.guard(handle.close(sessionExpiry));
    // A restart of the gateway is not the death of a device.
    if (!will || why === "shutdown") {
      if (connect.will) handle.willDone?.();
    } else {
      const done = (): void => handle.willDone?.();
      const { delaySec, ...message } = will;
      const job = this.publisher.will({ ...message, dup: false, packetId: undefined });
      const publish = (): void => {
        deps.meters.messageIn();
        this.speak(job, done);
      };
      // At the end of the session at the latest [MQTT-3.1.2-8].
      const delay = Math.min(delaySec, sessionExpiry);
      if (delay === 0) publish();
      else deps.wills.wait(client.id, delay, publish, done);
    }
    const packet = { graceful: why === "disconnect", ...farewell };
    this.speak({ type: "Disconnect", origin: "client", packet, client, lane: createLane() });
  }

  packet(packet: InPacket): void {
    switch (packet.cmd) {
      case "publish":
        this.publisher.publish(packet);
        break;
      case "puback":
      case "pubrec":
      case "pubcomp":
        this.guard(this.subscriber.acknowledge(packet));
        break;
      case "pubrel":
        this.guard(this.publisher.release(packet));
        break;
      case "subscribe":
        this.subscriber.subscribe(packet, (job, settle) => this.run(job, settle));
        break;
      case "unsubscribe":
        this.subscriber.unsubscribe(
          packet,
          (job, settle) => this.run(job, settle),
          () => this.publisher.giveGrace(),
        );
        break;
      case "pingreq":
        this.deps.meters.sent("pingresp");
        this.admitted.connection.send(pingresp);
        break;
      case "disconnect":
        this.disconnect(packet);
        break;
      case "auth":
        this.authenticate(packet);
        break;
      default:
        // A second CONNECT never leaves the decoder.
        this.admitted.connection.close("protocolError");
    }
  }

  private disconnect({ reasonCode, sessionExpiry, userProperties }: DisconnectIn): void {
    const { connection, connect } = this.admitted;
    if (sessionExpiry !== undefined) {
      if (sessionExpiry > 0 && connect.properties?.sessionExpiry === 0) {
        connection.close("protocolError", {
          reason: "protocolError",
          text: "a session that ends with its connection can't be given an expiry by DISCONNECT",
        });
        return;
      }
      this.sessionExpiry = Math.min(sessionExpiry, this.deps.spec.maxSessionExpiry);
    }
    this.farewell = { reasonCode, userProperties };
    // With any other code the will is published [MQTT-3.14.4-3].
    if (reasonCode === 0) this.will = undefined;
    connection.close("disconnect");
  }

  /** AUTH: the client authenticates anew, or answers a challenge. All else goes on meanwhile. */
  private authenticate(auth: AuthIn): void {
    const { connection, client, connect } = this.admitted;
    if (this.reauth?.answered(auth)) return;
    const { authenticationMethod: method } = connect.properties ?? {};
    if (this.reauth || auth.reasonCode !== codes.reAuthenticate || method === undefined || auth.method !== method) {
      connection.close("protocolError"); // [MQTT-4.12.1-1]
      return;
    }
    const send = (frame: Buffer): void => {
      this.deps.meters.sent("auth");
      connection.send(frame);
    };
    const exchange = createAuthExchange({ method, data: auth.data, reauth: true, send, received: () => undefined });
    this.reauth = exchange;
    const packet = connectPacket(this.admitted, auth.data);
    const job: Job = { type: "Connect", origin: "client", packet, client, lane: createLane(), auth: exchange.auth };
    this.run(job, (outcome) => {
      exchange.end("the client is authenticated");
      this.reauth = undefined;
      if (outcome.kind === "passed" && exchange.accepted) {
        send(encodeAuth(codes.success, method, exchange.data));
        return;
      }
      // [MQTT-4.12.1-2]
      const reason = outcome.kind === "passed" ? "notAuthorized" : reasonOf(outcome);
      connection.close("pipeline", { reason, text: textOf(outcome) });
    });
  }

  /** Runs what is said for a client that is gone. */
  private speak(job: Job, said?: () => void): void {
    this.deps.outlive((done) => {
      this.run(job, (outcome) => {
        if (job.origin === "will" && outcome.kind !== "passed") this.deps.meters.dropped(nameOf(outcome));
        said?.();
        done();
      });
    });
  }

  private run(job: Job, settle: (outcome: Outcome) => void): void {
    const outcome = this.deps.run(job, settle);
    if (outcome) settle(outcome);
  }

  /** A store that fails must not end the process; the client that it failed is closed and comes again. */
  private guard(work: Awaitable<void>): void {
    if (!(work instanceof Promise)) return;
    work.catch((error: unknown) => {
      this.deps.storeFailed(this.admitted.client.id, error);
      this.admitted.connection.close("fault");
    });
  }
}

const silent = { reasonCode: 0, userProperties: undefined };

/** What a filter sees where a client authenticates anew: its CONNECT, without the password and with the new data. */
function connectPacket({ client, connect }: Admitted, authenticationData: Buffer | undefined): ConnectPacket {
  const { clean, keepalive, username, will, properties } = connect;
  return {
    clientId: client.id,
    clean,
    keepalive,
    username,
    password: undefined,
    will,
    properties: { ...properties, authenticationData },
  };
}
