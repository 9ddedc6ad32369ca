/** LevelStore: the journal of the sessions in a LevelDB folder. */
import { resolve } from "node:path";
import type { ServiceKind } from "@sluice/kernel";
import { createDatabase, type Fsync } from "./database.ts";

interface Config {
  readonly dir: string;
  readonly fsync: Fsync;
  readonly fsyncIntervalMs: number;
}

const kind: ServiceKind<Config> = {
  kind: "LevelStore",
  role: "store",
  create(config, host) {
    const dir = resolve(host.folder, config.dir);
    const database = createDatabase({ ...config, dir, clock: host.clock });
    return {
      journal: database,
      start: () => database.open(),
      stop: () => database.close(),
      health: () => ({ ok: true, detail: `sessions are kept in ${dir}` }),
    };
  },
};

export default kind;
