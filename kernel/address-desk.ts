/** The addresses that workers listen on: bound once, and what is accepted is handed to them in turn. */
import type { Socket } from "node:net";
import type { Acceptor, Addresses, Claim } from "./addresses.ts";
import { messageOf } from "./errors.ts";
import type { Logger } from "./plugin.ts";
import type { Address } from "./spec.ts";

/** A worker, as sockets are handed to it. */
export interface Receiver {
  /** It does not take what it is handed: others are to get it. */
  readonly isStuck: boolean;
  hand(claim: number, socket: Socket): void;
}

export interface AddressDesk<W extends Receiver> {
  /** Numbers are the worker's own. @throws SluiceError LISTEN_FAILED */
  claim(worker: W, id: number, address: Address, by: string): Promise<Address>;
  /** From now on this claim gets the worker's share. */
  open(worker: W, id: number): void;
  release(worker: W, id: number): void;
  /** It has ended. An address that nobody else has stays bound, for the worker that is started in its place. */
  dropped(worker: W): void;
  /** Gives up what no worker has claimed. */
  tidy(): void;
  close(): void;
}

interface Desk<W> {
  readonly claim: Claim;
  readonly members: Map<W, { readonly ids: Set<number>; owner: number | undefined }>;
  /** Accepted while no worker had it open. */
  readonly waiting: Set<Socket>;
  isOpen: boolean;
  /** Whose turn it is. */
  turn: number;
}

/** Sockets that may wait for a worker. */
const maxWaiting = 1000;

export function createAddressDesk<W extends Receiver>(addresses: Addresses, log: Logger): AddressDesk<W> {
  const desks = new Map<string, Promise<Desk<W>>>();
  const bound = new Map<string, Desk<W>>();
  const keys = new Map<W, Map<number, string>>();

  async function bind(address: Address, by: string): Promise<Desk<W>> {
    const claim = await addresses.claim(address, by);
    return { claim, members: new Map(), waiting: new Set(), isOpen: false, turn: 0 };
  }

  function give(desk: Desk<W>, socket: Socket): void {
    const open = [...desk.members].filter(([, { owner }]) => owner !== undefined);
    const well = open.filter(([worker]) => !worker.isStuck);
    const ready = well.length > 0 ? well : open;
    const [worker, member] = ready[desk.turn++ % Math.max(1, ready.length)] ?? [];
    if (worker && member?.owner !== undefined) {
      worker.hand(member.owner, socket);
      return;
    }
    if (desk.waiting.size >= maxWaiting) {
      socket.destroy();
      return;
    }
    desk.waiting.add(socket);
    socket.once("close", () => desk.waiting.delete(socket));
  }

  function drop(key: string, desk: Desk<W>): void {
    desks.delete(key);
    bound.delete(key);
    desk.claim.release();
    for (const socket of desk.waiting) socket.destroy();
  }

  function leave(worker: W, id: number): void {
    const key = keys.get(worker)?.get(id);
    keys.get(worker)?.delete(id);
    const desk = key === undefined ? undefined : bound.get(key);
    const member = desk?.members.get(worker);
    if (key === undefined || !desk || !member) return;
    member.ids.delete(id);
    if (member.owner === id) member.owner = undefined;
    if (member.ids.size > 0) return;
    desk.members.delete(worker);
    if (desk.members.size === 0) drop(key, desk);
  }

  return {
    async claim(worker, id, address, by) {
      const key = keyOf(address, by);
      let opening = desks.get(key);
      if (!opening) {
        opening = bind(address, by);
        desks.set(key, opening);
        opening.then(
          (desk) => bound.set(key, desk),
          () => desks.delete(key),
        );
      }
      const desk = await opening;
      let member = desk.members.get(worker);
      if (!member) desk.members.set(worker, (member = { ids: new Set(), owner: undefined }));
      member.ids.add(id);
      let own = keys.get(worker);
      if (!own) keys.set(worker, (own = new Map()));
      own.set(id, key);
      return desk.claim.address;
    },
    open(worker, id) {
      const key = keys.get(worker)?.get(id);
      const desk = key === undefined ? undefined : bound.get(key);
      const member = desk?.members.get(worker);
      if (key === undefined || !desk || !member) return;
      member.owner = id;
      if (!desk.isOpen) {
        desk.isOpen = true;
        const acceptor: Acceptor = {
          onSocket: (socket) => give(desk, socket),
          onError: (error) => log.error({ error: messageOf(error) }, "Accepting connections failed"),
        };
        desk.claim.open(acceptor);
      }
      for (const socket of desk.waiting) {
        desk.waiting.delete(socket);
        give(desk, socket);
      }
    },
    release: leave,
    dropped(worker) {
      keys.delete(worker);
      for (const { members } of bound.values()) members.delete(worker);
    },
    tidy() {
      for (const [key, desk] of bound) if (desk.members.size === 0) drop(key, desk);
    },
    close() {
      for (const [key, desk] of bound) drop(key, desk);
    },
  };
}

/** A port that is left to the system is the same one for all workers, but another for each listener. */
function keyOf(address: Address, by: string): string {
  if ("socket" in address) return `${address.socket} ${address.mode}`;
  const { host = "::", port } = address;
  return port === 0 ? `${host} 0 ${by}` : `${host} ${port}`;
}
