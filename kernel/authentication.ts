/** MQTT 5's enhanced authentication (section 4.12): the AUTH packets of one run of the Connect pipeline. */
import { encodeAuth } from "./codec.ts";
import type { AuthIn } from "./packet.ts";
import type { Authentication } from "./plugin.ts";
import { codes } from "./reasons.ts";

export interface AuthExchange {
  /** What filters see. */
  readonly auth: Authentication;
  /** A filter knows the method, and the client has passed. */
  readonly accepted: boolean;
  /** What is sent along with the success. */
  readonly data: Buffer | undefined;
  /** The client's AUTH packet. False: none was waited for, or it is for another method [MQTT-4.12.0-5]. */
  answered(packet: AuthIn): boolean;
  /** The client won't answer any more. */
  end(why: string): void;
}

export function createAuthExchange(o: {
  method: string;
  data: Buffer | undefined;
  reauth: boolean;
  /** An AUTH packet; what the client answers is to be read. */
  send: (frame: Buffer) => void;
  /** It has answered. */
  received: () => void;
}): AuthExchange {
  let waiting: PromiseWithResolvers<Buffer | undefined> | undefined;
  let accepted = false;
  let ended: string | undefined;
  let last: Buffer | undefined;
  return {
    auth: {
      method: o.method,
      data: o.data,
      reauth: o.reauth,
      accept(data) {
        accepted = true;
        last = data;
      },
      challenge(data) {
        if (ended !== undefined) return Promise.reject(new Error(ended));
        if (waiting) return Promise.reject(new Error("the client has not answered the last challenge yet"));
        waiting = Promise.withResolvers();
        const { promise } = waiting;
        // A filter that no longer waits for it must not bring the process down.
        promise.catch(() => undefined);
        o.send(encodeAuth(codes.continueAuthentication, o.method, data));
        return promise;
      },
    },
    get accepted() {
      return accepted;
    },
    get data() {
      return last;
    },
    answered({ reasonCode, method, data }) {
      if (!waiting || method !== o.method || reasonCode !== codes.continueAuthentication) return false;
      const { resolve } = waiting;
      waiting = undefined;
      o.received();
      resolve(data);
      return true;
    },
    end(why) {
      ended = why;
      waiting?.reject(new Error(why));
      waiting = undefined;
    },
  };
}
