/** What npm needs to see the workspace's packages as they would be published. */
import { dirname, delimiter } from "node:path";
import { packAll, startRegistry as serve } from "./published.ts";

/** The package that brings the command `sluice`. */
export const gatewayPackage = "sluice";

export interface Registry {
  /** For what runs npm: this registry, no questions, and the node that runs the tests. */
  readonly env: NodeJS.ProcessEnv;
  /** Of each package, the path of its tarball. */
  readonly tarballs: ReadonlyMap<string, string>;
  close(): Promise<void>;
}

export async function startRegistry(): Promise<Registry> {
  const published = await packAll();
  const registry = await serve(published);
  // With it, a test runner inside of ours would report to ours.
  const { NODE_TEST_CONTEXT: _, ...env } = process.env;
  return {
    env: {
      ...env,
      ...registry.env,
      // Without the workspace's own tools: what a package needs, it has to bring.
      PATH: [dirname(process.execPath), process.env["PATH"]].join(delimiter),
      npm_config_yes: "true",
      npm_config_audit: "false",
      npm_config_fund: "false",
      npm_config_loglevel: "error",
      npm_config_update_notifier: "false",
    },
    tarballs: new Map(published.names.map((name) => [name, published.tarball(name)])),
    async close() {
      await registry.close();
      await published.remove();
    },
  };
}
