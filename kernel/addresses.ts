/**
 * Bound sockets by address, outside of proxies and of any config: an address passes from one proxy to another without
 * being unbound, and goes on being the old one's where the change is given up.
 */
import { createServer, type AddressInfo, type Server, type Socket } from "node:net";
import { SluiceError } from "./errors.ts";

export interface Address {
  /** Undefined = every interface, IPv6 and IPv4. */
  readonly host: string | undefined;
  /** 0 = any free one. */
  readonly port: number;
}

/** Who gets what is accepted. */
export interface Acceptor {
  onSocket(socket: Socket): void;
  /** Accepting failed: out of file descriptors, say. */
  onError(error: Error): void;
}

/** A share in a bound address. The last one that is released unbinds it. */
export interface Claim {
  readonly address: AddressInfo;
  /** Takes the address over: what is accepted from here on is this acceptor's, and first what waited for one. */
  open(acceptor: Acceptor): void;
  release(): void;
}

export interface Addresses {
  /**
   * Binds the address, or shares in it where it is bound already; whose it is does not change before `open`.
   * @throws SluiceError LISTEN_FAILED with the address and the system's reason
   */
  claim(address: Address): Promise<Claim>;
}

interface Bound {
  readonly address: Address;
  readonly server: Server;
  readonly claims: Set<Claim>;
  owner: { readonly claim: Claim; readonly acceptor: Acceptor } | undefined;
  /** Accepted while there was no owner. */
  readonly waiting: Set<Socket>;
}

/** Sockets that may wait for an owner; the system's own backlog holds more. */
const maxWaiting = 1000;

export function createAddresses(): Addresses {
  /** By {@link keyOf}; a port that was left to the system to choose is the one it chose. */
  const bound = new Map<string, Bound>();

  async function bind(address: Address): Promise<Bound> {
    const server = createServer({ noDelay: true });
    await new Promise<void>((resolve, reject) => {
      server.once("error", (error: NodeJS.ErrnoException) => {
        const own = [...bound.values()].find((each) => each.address.port === address.port);
        reject(bindError(error, address, own?.address));
      });
      const { host, port } = address;
      server.listen({ port, ...(host === undefined ? {} : { host }) }, resolve);
    });
    const { port } = server.address() as AddressInfo;
    const made: Bound = {
      address: { host: address.host, port },
      server,
      claims: new Set(),
      owner: undefined,
      waiting: new Set(),
    };
    server.removeAllListeners("error");
    server.on("error", (error) => made.owner?.acceptor.onError(error));
    server.on("connection", (socket) => accept(made, socket));
    bound.set(keyOf(made.address), made);
    return made;
  }

  function release(share: Bound, claim: Claim): void {
    if (!share.claims.delete(claim)) return;
    if (share.owner?.claim === claim) share.owner = undefined;
    if (share.claims.size > 0) return;
    bound.delete(keyOf(share.address));
    // Its callback would wait for the connections, which end in their own time.
    share.server.close();
    for (const socket of share.waiting) socket.destroy();
  }

  return {
    async claim(address) {
      const share = bound.get(keyOf(address)) ?? (await bind(address));
      const claim: Claim = {
        address: share.server.address() as AddressInfo,
        open(acceptor) {
          share.owner = { claim, acceptor };
          for (const socket of share.waiting) {
            share.waiting.delete(socket);
            acceptor.onSocket(socket);
          }
        },
        release: () => release(share, claim),
      };
      share.claims.add(claim);
      return claim;
    },
  };
}

function accept({ owner, waiting }: Bound, socket: Socket): void {
  // Of a socket that nobody has yet, an error is only its end.
  socket.on("error", ignore);
  if (owner) {
    owner.acceptor.onSocket(socket);
    return;
  }
  if (waiting.size >= maxWaiting) {
    socket.destroy();
    return;
  }
  waiting.add(socket);
  socket.once("close", () => waiting.delete(socket));
}

function ignore(): void {
  // The close that follows is what counts.
}

/** Without a host, Node binds the IPv6 address that takes IPv4 too. */
function keyOf({ host = "::", port }: Address): string {
  return `${host} ${port}`;
}

/** @param own an address of this gateway on the same port */
function bindError(error: NodeJS.ErrnoException, { host = "*", port }: Address, own: Address | undefined): SluiceError {
  const inUse = own
    ? `this gateway itself still has ${own.host ?? "*"}:${port}, and the two overlap: give that one up first, or set another port`
    : "another process has it: stop that one, or set another port";
  const advice =
    error.code === "EADDRINUSE"
      ? inUse
      : error.code === "EACCES"
        ? "this user may not bind it: ports below 1024 need a privilege"
        : "check host and port";
  return new SluiceError("LISTEN_FAILED", `can't listen on ${host}:${port}: ${error.message}; ${advice}`, {
    cause: error,
  });
}
