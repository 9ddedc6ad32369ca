/** The listeners of one proxy: a change touches those that it changes. */
import { isDeepStrictEqual } from "node:util";
import { type Addresses, type Claim, showAddress } from "./addresses.ts";
import { messageOf, SluiceError } from "./errors.ts";
import {
  type ArrivalLimits,
  createGate,
  createListener,
  type Gate,
  type Listener,
  type ListenerOwner,
} from "./listener.ts";
import type { ListenerSpec } from "./spec.ts";

export interface Listeners {
  /** What clients are to be told, in the config's order. */
  list(): readonly { readonly name: string; readonly url: string; readonly address: string }[];
  /**
   * Claims addresses that are new, and makes what TLS and WebSockets need.
   * @throws SluiceError LISTEN_FAILED, CONFIG_INVALID; nothing has changed then
   */
  prepare(wanted: readonly ListenerSpec[], limits: ArrivalLimits): Promise<ListenersChange>;
  /** Gives all addresses up, and ends what is not yet speaking MQTT. */
  close(): void;
}

/** One of the two is called, once. */
export interface ListenersChange {
  /** Bound, of all listeners that there will be. */
  readonly addresses: readonly string[];
  /** Can't fail. @returns the listeners that are gone, and not only moved to another address */
  commit(): ReadonlySet<symbol>;
  rollback(): void;
}

interface Step {
  readonly listener: Listener;
  readonly gate: Gate;
}

/** @param proxy its name */
export function createListeners(addresses: Addresses, owner: ListenerOwner, proxy: string): Listeners {
  let running: readonly Listener[] = [];

  /** Those that stay: by address and name first (any free port is one address), then by address alone. */
  function keptFor(wanted: readonly ListenerSpec[]): Map<ListenerSpec, Listener> {
    const kept = new Map<ListenerSpec, Listener>();
    const left = new Set(running);
    for (const byName of [true, false]) {
      for (const spec of wanted) {
        const found = [...left].find(
          ({ gate }) =>
            isDeepStrictEqual(gate?.spec.address, spec.address) && (!byName || gate?.spec.name === spec.name),
        );
        if (!found || kept.has(spec)) continue;
        left.delete(found);
        kept.set(spec, found);
      }
    }
    return kept;
  }

  function gateFor(spec: ListenerSpec, limits: ArrivalLimits, old: Gate | undefined): Gate {
    try {
      return createGate(spec, limits, owner, old);
    } catch (error) {
      const what = `its certificates can't be used for TLS: ${messageOf(error)}`;
      throw new SluiceError("CONFIG_INVALID", what, { cause: error, listener: spec.name });
    }
  }

  async function claim({ address, name }: ListenerSpec): Promise<Claim> {
    try {
      return await addresses.claim(address, `${proxy}/${name}`);
    } catch (error) {
      if (!(error instanceof SluiceError)) throw error;
      throw new SluiceError(error.code, error.message, { cause: error, listener: name });
    }
  }

  return {
    list: () =>
      running.flatMap(({ address, gate }) =>
        gate ? [{ name: gate.spec.name, url: urlOf(gate.spec, address), address: showAddress(address) }] : [],
      ),
    async prepare(wanted, limits) {
      const kept = keptFor(wanted);
      const stays = new Set(kept.values());
      const claimed: Listener[] = [];
      const steps: Step[] = [];
      const rollback = (): void => {
        for (const listener of claimed) listener.release();
      };
      try {
        for (const spec of wanted) {
          const old = kept.get(spec);
          const moved = running.find(({ gate }) => gate?.spec.name === spec.name);
          const gate = gateFor(spec, limits, (old ?? moved)?.gate);
          let listener = old;
          if (!listener) {
            const id = moved && !stays.has(moved) ? moved.id : Symbol(spec.name);
            listener = createListener(await claim(spec), id, owner);
            claimed.push(listener);
          }
          steps.push({ listener, gate });
        }
      } catch (error) {
        rollback();
        throw error;
      }
      return {
        addresses: steps.map(({ listener }) => showAddress(listener.address)),
        rollback,
        commit() {
          const left = new Set(running).difference(stays);
          running = steps.map(({ listener }) => listener);
          for (const { listener, gate } of steps) listener.open(gate);
          for (const listener of left) listener.release();
          const ids = new Set(running.map(({ id }) => id));
          return new Set([...left].map(({ id }) => id).filter((id) => !ids.has(id)));
        },
      };
    },
    close() {
      for (const listener of running) listener.release();
      for (const socket of owner.arriving) socket.destroy();
    },
  };
}

function urlOf({ tls, webSocket }: ListenerSpec, address: Listener["address"]): string {
  const scheme = webSocket ? (tls ? "wss" : "ws") : tls ? "mqtts" : "mqtt";
  const path = webSocket?.path;
  if ("socket" in address) return `${scheme}+unix://${address.socket}${path === undefined ? "" : `:${path}`}`;
  const { host, port } = address;
  const isEverywhere = host === undefined || host === "::" || host === "0.0.0.0";
  return `${scheme}://${showAddress({ host: isEverywhere ? "127.0.0.1" : host, port })}${path ?? ""}`;
}
