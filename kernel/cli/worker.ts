/** The program of a worker: a gateway whose sessions, addresses and config come from the main process. */
import { Socket } from "node:net";
import process from "node:process";
import { loadSpec } from "../config.ts";
import type { FromWorker, ToWorker, WorkerStart } from "../crew-wire.ts";
import { messageOf, problemsOf, SluiceError } from "../errors.ts";
import { createGateway, type PreparedChange } from "../gateway.ts";
import { createHandedAddresses } from "../handed-addresses.ts";
import { storeFd } from "../mate.ts";
import { createPluginModules } from "../plugin-modules.ts";
import { createRemoteStore } from "../remote-store.ts";
import { schemaCompiler } from "../schema.ts";
import type { Spec } from "../spec.ts";
import { createLog } from "./log.ts";
import { surviveStrays } from "./strays.ts";

const reportMs = 1000;

// They are the main process's to hear, which says what is to be done; a terminal sends them to all.
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => undefined);
// Nothing can be made safe any more without it.
process.on("disconnect", () => process.exit(1));

const send = (message: FromWorker): void => {
  if (process.connected) process.send?.(message, undefined, undefined, () => undefined);
};

process.once("message", (first: ToWorker) => {
  if (first.type === "start") void serve(first);
});
send({ type: "up" });

async function serve(start: WorkerStart): Promise<void> {
  const { index, count, node, caps, version, path, cwd, bins, startDeadlineMs } = start;
  /** Messages that come before there is a gateway. */
  const early: [ToWorker, Socket | undefined][] = [];
  let receive = (message: ToWorker, socket: Socket | undefined): void => void early.push([message, socket]);
  process.on("message", (message: ToWorker, socket: Socket | undefined) => receive(message, socket));

  const { isTTY } = process.stdout;
  const log = await createLog({ isTTY, colors: isTTY && !process.env["NO_COLOR"] }, { worker: index });
  log.level = start.logLevel;
  const addresses = createHandedAddresses(send);
  const store = createRemoteStore({ node, caps, stream: new Socket({ fd: storeFd, readable: true, writable: true }) });
  const drain = (): void => send({ type: "drain" });
  const gateway = createGateway({
    log,
    version,
    startDeadlineMs,
    worker: { index, count, store, addresses, drain },
  });
  surviveStrays(gateway, log);
  const compile = schemaCompiler();
  const modules = createPluginModules({ log, metrics: gateway.host.metrics });
  // A filter of one worker can't speak for all of them.
  const refuse = () =>
    Promise.reject(new SluiceError("CONFIG_READ_ONLY", "a filter of a worker can't change the config; a service can"));
  gateway.setConfigControl({
    apply: refuse,
    history: () => [],
    rollback: refuse,
    changeBack: refuse,
    digest: () => "",
  });
  /** Undefined where it failed. */
  const prepared = new Map<number, Promise<PreparedChange | undefined>>();

  async function prepare(id: number, texts: ReadonlyMap<string, string>): Promise<PreparedChange | undefined> {
    try {
      const loaded = await loadSpec({ path, cwd, env: process.env, bins, overlay: texts, compile, modules });
      const { spec, registry, problems } = loaded;
      if (!spec) {
        const [found] = problems;
        send({ type: "failed", id, code: found?.code ?? "CONFIG_INVALID", problems: problems.map(placeOf) });
        return undefined;
      }
      const change = await gateway.prepare({ spec: partOf(spec), registry });
      send({ type: "prepared", id });
      return change;
    } catch (error) {
      const code = error instanceof SluiceError ? error.code : "CONFIG_INVALID";
      const problems = problemsOf(error) ?? [{ where: "", message: messageOf(error) ?? "unknown" }];
      send({ type: "failed", id, code, problems: problems.map(placeOf) });
      return undefined;
    }
  }

  /** Services and the store are the main process's; so many clients a second are closed by all workers together. */
  function partOf(spec: Spec): Spec {
    const { gateway: settings } = spec;
    const rate = settings.drain.rate / count;
    return { ...spec, services: [], gateway: { ...settings, drain: { ...settings.drain, rate } } };
  }

  async function commit(id: number): Promise<void> {
    const change = await prepared.get(id);
    prepared.delete(id);
    await change?.commit();
    report();
    send({ type: "committed", id });
  }

  /** Also of one that is not ready yet. */
  async function rollback(id: number): Promise<void> {
    const change = await prepared.get(id);
    prepared.delete(id);
    await change?.rollback();
  }

  async function stop(share: number): Promise<void> {
    clearInterval(reporting);
    const { drain: own } = gateway.spec?.gateway ?? {};
    await gateway.stop(own && own.rate * count * share);
    modules.close();
    process.exit(0);
  }

  function report(): void {
    send({ type: "report", report: gateway.report() });
  }

  const reporting = setInterval(report, reportMs);
  receive = (message, socket) => {
    switch (message.type) {
      case "prepare":
        prepared.set(message.id, prepare(message.id, new Map(message.texts)));
        break;
      case "commit":
        void commit(message.id);
        break;
      case "rollback":
        void rollback(message.id);
        break;
      case "claimed":
      case "refused":
      case "socket":
        addresses.receive(message, socket);
        break;
      case "measure":
        void gateway.snapshot().then((metrics) => send({ type: "measured", id: message.id, metrics }));
        break;
      case "logLevel":
        log.level = message.level;
        break;
      case "stop":
        void stop(message.share);
        break;
      default:
    }
  };
  for (const [message, socket] of early) receive(message, socket);
}

function placeOf({ where, message }: { where: string; message: string }): { where: string; message: string } {
  return { where, message };
}
