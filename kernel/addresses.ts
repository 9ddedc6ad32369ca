/**
 * Bound sockets by address, outside of proxies and of any config: an address passes from one proxy to another without
 * being unbound, and goes on being the old one's where the change is given up.
 */
import { chmodSync, lstatSync, unlinkSync } from "node:fs";
import { connect, createServer, type Server, type Socket } from "node:net";
import { messageOf, SluiceError } from "./errors.ts";
import type { Address, UnixAddress } from "./spec.ts";

/** Who gets what is accepted. */
export interface Acceptor {
  onSocket(socket: Socket): void;
  /** Accepting failed: out of file descriptors, say. */
  onError(error: Error): void;
}

/** A share in a bound address. The last one that is released unbinds it. */
export interface Claim {
  /** With the port that the system chose, where it was to. */
  readonly address: Address;
  /** Takes the address over: what is accepted from here on is this acceptor's, and first what waited for one. */
  open(acceptor: Acceptor): void;
  release(): void;
}

export interface Addresses {
  /**
   * Binds the address, or shares in it where it is bound already; whose it is does not change before `open`.
   * @param by who asks, `proxy/listener`: tells two apart that leave the port to the system
   * @throws SluiceError LISTEN_FAILED with the address and the system's reason
   */
  claim(address: Address, by?: string): Promise<Claim>;
}

interface Bound {
  address: Address;
  readonly server: Server;
  readonly claims: Set<Claim>;
  owner: { readonly claim: Claim; readonly acceptor: Acceptor } | undefined;
  /** Accepted while there was no owner. */
  readonly waiting: Set<Socket>;
}

/** Sockets that may wait for an owner; the system's own backlog holds more. */
const maxWaiting = 1000;

/** @param o.pauseOnConnect sockets are handed on unread, to another process */
export function createAddresses({ pauseOnConnect = false } = {}): Addresses {
  /** By {@link keyOf}; a port that was left to the system to choose is the one it chose. */
  const bound = new Map<string, Bound>();

  async function bind(address: Address): Promise<Bound> {
    // A peer that vanished without a word and asked for no keep alive is found by TCP's own.
    const server = createServer({
      noDelay: true,
      keepAlive: true,
      keepAliveInitialDelay: 60_000,
      pauseOnConnect,
    });
    try {
      await listen(server, address);
    } catch (error) {
      server.close();
      const own = [...bound.values()].find((each) => overlaps(each.address, address));
      throw bindError(error as NodeJS.ErrnoException, address, own?.address);
    }
    const info = server.address();
    const made: Bound = {
      address: typeof info === "object" && info && "port" in address ? { ...address, port: info.port } : address,
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
        address: "port" in address ? share.address : address,
        open(acceptor) {
          share.owner = { claim, acceptor };
          if ("socket" in address && "socket" in share.address && address.mode !== share.address.mode) {
            share.address = address;
            setMode(address, acceptor);
          }
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
function keyOf(address: Address): string {
  return "socket" in address ? address.socket : `${address.host ?? "::"} ${address.port}`;
}

function overlaps(own: Address, wanted: Address): boolean {
  return "port" in own && "port" in wanted && own.port === wanted.port;
}

async function listen(server: Server, address: Address): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  server.once("error", reject);
  server.once("listening", resolve);
  if ("port" in address) {
    server.listen({ port: address.port, ...(address.host === undefined ? {} : { host: address.host }) });
  } else {
    await removeStale(address);
    server.listen(address.socket);
    // Bound at once: nobody can have come in between.
    if (server.listening) chmodSync(address.socket, address.mode);
  }
  await promise;
}

/** A process that was killed leaves its socket behind; one that lives answers. */
async function removeStale({ socket }: UnixAddress): Promise<void> {
  const stats = lstatSync(socket, { throwIfNoEntry: false });
  if (!stats) return;
  if (!stats.isSocket()) throw Object.assign(new Error("there is something else by this name"), { code: "EEXIST" });
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const probe = connect(socket);
  probe
    .once("connect", () => resolve(true))
    .once("error", (error: NodeJS.ErrnoException) => resolve(error.code !== "ECONNREFUSED"));
  const isAlive = await promise;
  probe.destroy();
  if (isAlive) throw Object.assign(new Error("something listens on it"), { code: "EADDRINUSE" });
  unlinkSync(socket);
}

function setMode({ socket, mode }: UnixAddress, acceptor: Acceptor): void {
  try {
    chmodSync(socket, mode);
  } catch (error) {
    acceptor.onError(new Error(`the permissions of ${socket} can't be set: ${messageOf(error)}`));
  }
}

/** For people: `127.0.0.1:1883`, or the path of a unix socket. */
export function showAddress(address: Address): string {
  if ("socket" in address) return address.socket;
  const { host = "*", port } = address;
  return `${host.includes(":") ? `[${host}]` : host}:${port}`;
}

/** @param own an address of this gateway that overlaps it */
function bindError(error: NodeJS.ErrnoException, address: Address, own: Address | undefined): SluiceError {
  const what = `can't listen on ${showAddress(address)}: ${error.message}; ${adviceOn(error.code, address, own)}`;
  return new SluiceError("LISTEN_FAILED", what, { cause: error });
}

function adviceOn(code: string | undefined, address: Address, own: Address | undefined): string {
  const isUnix = "socket" in address;
  switch (code) {
    case "EADDRINUSE":
      if (own)
        return `this gateway itself still has ${showAddress(own)}, and the two overlap: give that one up first, or set another port`;
      return `another process has it: stop that one, or set another ${isUnix ? "path" : "port"}`;
    case "EACCES":
      // Also what the system says of a folder that is not there.
      return isUnix
        ? "its folder must exist, and this user must be allowed to write to it"
        : "this user may not bind it: ports below 1024 need a privilege";
    case "EEXIST":
      return "remove it, or set another path";
    default:
      return isUnix ? "check the path" : "check host and port";
  }
}
