/**
 * Changes of the config made on one node reach all: each node plans and applies the change by itself, to its own files, so
 * that one that can't take it keeps what it has, and says so. There is no common version: each node counts its own.
 */
import type { ClusterEngine } from "./cluster-engine.ts";
import { messageOf, problemsOf, SluiceError } from "./errors.ts";
import type { ChangeOptions, ConfigChange, ConfigControl, ConfigResult, NodeConfigResult } from "./plugin.ts";

/** The config of this node alone. */
export interface LocalConfig extends ConfigControl {
  /** What a rollback to this version would change, as documents. @throws SluiceError CONFIG_NOT_FOUND */
  changeBack(version: number): Promise<ConfigChange>;
  /** Of what runs, as {@link MemberReport} has it. */
  digest(): string;
}

/** The word between nodes. */
const kind = "config.change";

/** How long a node has for a change: it may have to start plugins. */
const answerMs = 30_000;

interface Wish {
  readonly change: ConfigChange;
  readonly by: string;
  readonly dryRun: boolean;
}

/** Takes the other nodes' changes until the engine stops. */
export function takeChanges(engine: ClusterEngine, local: () => LocalConfig | undefined): void {
  engine.control.handle(kind, async (body, from) => {
    const { change, by, dryRun } = JSON.parse(body.toString()) as Wish;
    let answer: Omit<NodeConfigResult, "node">;
    try {
      const config = local();
      if (!config) throw new SluiceError("CONFIG_READ_ONLY", "this node was not started from files");
      const { version, plan } = await config.apply(change, { by: `${by} on ${from}`, dryRun });
      answer = { outcome: dryRun ? "accepted" : "applied", version, plan };
    } catch (error) {
      answer = { outcome: "refused", problem: problemOf(error) };
    }
    return Buffer.from(JSON.stringify(answer));
  });
}

/** @param engine undefined = no other nodes */
export function createSharedConfig(local: LocalConfig, engine: () => ClusterEngine | undefined): ConfigControl {
  async function ask(cluster: ClusterEngine, wish: Wish): Promise<readonly NodeConfigResult[]> {
    const body = Buffer.from(JSON.stringify(wish));
    return await Promise.all(
      cluster
        .peers()
        .filter(({ hasLeft }) => !hasLeft)
        .toSorted((a, b) => (a.id < b.id ? -1 : 1))
        .map(async ({ id, isUp }): Promise<NodeConfigResult> => {
          if (!isUp) return { node: id, outcome: "unreached", problem: "the node is down" };
          try {
            const answer = await cluster.control.request(id, kind, body, answerMs);
            return { node: id, ...(JSON.parse(answer.toString()) as Omit<NodeConfigResult, "node">) };
          } catch (error) {
            return { node: id, outcome: "unreached", problem: messageOf(error) ?? "no answer" };
          }
        }),
    );
  }

  /** Here first: what this node refuses goes nowhere. */
  async function everywhere(
    how: ChangeOptions,
    change: () => Promise<ConfigChange>,
    here: () => Promise<ConfigResult>,
  ): Promise<ConfigResult> {
    const cluster = engine();
    if (!cluster) return await here();
    const wanted = await change();
    const result = await here();
    const { by, dryRun = false } = how;
    return { ...result, nodes: await ask(cluster, { change: wanted, by, dryRun }) };
  }

  return {
    apply: (change, how) =>
      everywhere(
        how,
        () => Promise.resolve(change),
        () => local.apply(change, how),
      ),
    history: () => local.history(),
    rollback: (version, how) =>
      everywhere(
        how,
        () => local.changeBack(version),
        () => local.rollback(version, how),
      ),
  };
}

/** Its code and places: whoever reads it is elsewhere. */
function problemOf(error: unknown): string {
  const problems = problemsOf(error)?.map(({ where, message }) => `${where}: ${message}`);
  const said = problems?.join("; ") ?? messageOf(error) ?? "for an unknown reason";
  return error instanceof SluiceError ? `${error.code}: ${said}` : said;
}
