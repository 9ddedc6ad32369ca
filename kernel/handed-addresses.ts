/** Addresses as a worker has them: the main process binds them and accepts, and hands the sockets out. */
import type { Socket } from "node:net";
import type { Acceptor, Addresses, Claim } from "./addresses.ts";
import type { FromWorker, ToWorker } from "./crew-wire.ts";
import { SluiceError } from "./errors.ts";
import type { Address } from "./spec.ts";

export interface HandedAddresses extends Addresses {
  /** What the main process says of them. */
  receive(message: Extract<ToWorker, { type: "claimed" | "refused" | "socket" }>, socket: Socket | undefined): void;
}

export function createHandedAddresses(send: (message: FromWorker) => void): HandedAddresses {
  let last = 0;
  const asked = new Map<number, PromiseWithResolvers<Address>>();
  const acceptors = new Map<number, Acceptor>();

  return {
    async claim(address, by = ""): Promise<Claim> {
      const id = ++last;
      const answer = Promise.withResolvers<Address>();
      asked.set(id, answer);
      send({ type: "claim", id, address, by });
      const bound = await answer.promise;
      return {
        address: bound,
        open(acceptor) {
          acceptors.set(id, acceptor);
          send({ type: "open", id });
        },
        release() {
          acceptors.delete(id);
          send({ type: "release", id });
        },
      };
    },
    receive(message, socket) {
      if (message.type === "socket") {
        send({ type: "got", id: message.id });
        const acceptor = acceptors.get(message.claim);
        if (!socket) return;
        // Of a socket that nobody has yet, an error is only its end.
        socket.on("error", () => undefined);
        if (acceptor) acceptor.onSocket(socket);
        else socket.destroy();
        return;
      }
      const answer = asked.get(message.id);
      asked.delete(message.id);
      if (message.type === "claimed") answer?.resolve(message.address);
      else answer?.reject(new SluiceError(message.code, message.message));
    },
  };
}
