/** The HTTP server of one AdminAPI: behind a door of its own, or behind the one of the AdminAPI that it replaces. */
import type { RequestListener } from "node:http";
import type { Host } from "@sluice/kernel";
import { createDoor, modeOf, usualLimits } from "./door.ts";
import type { Door, DoorOptions, Tenant, TimeLimits } from "./door.ts";
import { isLoopback } from "./origin.ts";

export interface HttpServer {
  readonly options: DoorOptions;
  /** What is bound; undefined before the start. */
  door(): Door | undefined;
  /**
   * Will answer behind the door of `previous` once that one is stopped, where both want the same address; else `start`
   * binds another. Throws where they differ in what no open door can change.
   */
  adopt(previous: HttpServer): void;
  /** Binds, unless it has adopted; rejects with an error that names the address. */
  start(): Promise<void>;
  /** Leaves the door to the next, or closes it. Ends once. */
  stop(): Promise<void>;
  /** True while answers must end their connection. */
  isEnding(): boolean;
  /** `http://127.0.0.1:2381`, with the port really bound; undefined while nothing is. */
  url(): string | undefined;
}

export function createHttpServer(
  host: Host,
  options: DoorOptions,
  handle: RequestListener,
  limits: TimeLimits = usualLimits,
): HttpServer {
  const { log } = host;
  let door: Door | undefined;
  let stopping: Promise<void> | undefined;
  let ending = false;
  const tenant: Tenant = {
    options,
    handle,
    end() {
      ending = true;
    },
  };

  async function bind(): Promise<void> {
    const opened = createDoor(host, tenant, limits);
    await opened.listen();
    // A start that took too long may have been given up.
    if (stopping) return opened.leave(tenant);
    door = opened;
    const url = opened.url();
    log.info({ url }, `HTTP API at ${url}`);
    if (!options.tls && !isLoopback(options.host)) {
      log.warn(
        { url },
        "the HTTP API can be reached from other machines, and keys and passwords go there in clear text: give it tls",
      );
    }
  }

  return {
    options,
    door: () => door,
    adopt(previous) {
      const open = previous.door();
      const other = previous.options;
      if (!open || other.host !== options.host || other.port !== options.port) return;
      if (modeOf(other) !== modeOf(options)) {
        // A free port is another one each time.
        if (options.port === 0) return;
        throw new Error(
          `it can't change from ${modeOf(other)} to ${modeOf(options)} while it runs: change its port too, or restart the gateway`,
        );
      }
      open.enter(tenant);
      door = open;
    },
    start: () => (door ? Promise.resolve() : bind()),
    stop() {
      return (stopping ??= door ? door.leave(tenant) : Promise.resolve());
    },
    isEnding: () => ending,
    url: () => (stopping ? undefined : door?.url()),
  };
}
