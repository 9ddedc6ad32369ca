/** What the gateway's main process and its workers say to each other beside the store: types only. */
import type { Code } from "./errors.ts";
import type { MetricSnapshot } from "./metrics.ts";
import type { ObjectHealth } from "./plugin.ts";
import type { ProxyTotals } from "./proxy-metrics.ts";
import type { Address } from "./spec.ts";
import type { Store } from "./store.ts";

/** What a worker is started with; it reads the config as the main process does. */
export interface WorkerStart {
  readonly index: number;
  readonly count: number;
  readonly node: Store["node"];
  readonly caps: Store["caps"];
  readonly version: string;
  readonly logLevel: string;
  readonly startDeadlineMs: number;
  /** The config: a file or folder, absolute. */
  readonly path: string;
  readonly cwd: string;
  readonly bins: readonly string[];
}

/** To a worker. */
export type ToWorker =
  | ({ readonly type: "start" } & WorkerStart)
  /** Build all that is new in this config, and change nothing yet. */
  | {
      readonly type: "prepare";
      readonly id: number;
      readonly texts: readonly (readonly [file: string, text: string])[];
    }
  | { readonly type: "commit" | "rollback"; readonly id: number }
  | { readonly type: "claimed"; readonly id: number; readonly address: Address }
  | { readonly type: "refused"; readonly id: number; readonly code: Code; readonly message: string }
  /** Comes with a socket; it is to be answered. */
  | { readonly type: "socket"; readonly id: number; readonly claim: number }
  | { readonly type: "measure"; readonly id: number }
  | { readonly type: "logLevel"; readonly level: string }
  /** @param share of all clients that are to be closed at the drain's rate */
  | { readonly type: "stop"; readonly share: number };

export interface WorkerProblem {
  readonly where: string;
  readonly message: string;
}

/** What a worker tells of itself each second. */
export interface WorkerReport {
  readonly health: readonly ObjectHealth[];
  readonly proxies: readonly {
    readonly name: string;
    readonly listeners: readonly { readonly name: string; readonly url: string; readonly address: string }[];
    readonly totals: ProxyTotals;
  }[];
}

/** From a worker. */
export type FromWorker =
  /** It listens. */
  | { readonly type: "up" }
  | { readonly type: "prepared"; readonly id: number }
  | { readonly type: "failed"; readonly id: number; readonly code: Code; readonly problems: readonly WorkerProblem[] }
  | { readonly type: "committed"; readonly id: number }
  | { readonly type: "claim"; readonly id: number; readonly address: Address; readonly by: string }
  | { readonly type: "open" | "release"; readonly id: number }
  /** The socket of this number. */
  | { readonly type: "got"; readonly id: number }
  | { readonly type: "measured"; readonly id: number; readonly metrics: readonly MetricSnapshot[] }
  | { readonly type: "report"; readonly report: WorkerReport }
  | { readonly type: "drain" };
