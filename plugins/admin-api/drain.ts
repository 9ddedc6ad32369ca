/** `sluice drain`: stop a running gateway gently. */
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { apiHelp, exit, failure, openApi } from "./api.ts";
import { defineCommand } from "./command.ts";

const help = `Usage: sluice drain [options]

Stop a running gateway as SIGTERM does: it is no longer ready, takes no new client, closes those it has at drain.rate a
second, each when its packets under way are through, and ends. Returns when its HTTP API has gone.

Options:
  --timeout SECONDS   how long to wait for that (default 60); 0 = return at once
${apiHelp}`;

export default defineCommand("stop a running gateway gently", help, async (args, io) => {
  const { values } = parseArgs({
    args,
    options: {
      api: { type: "string" },
      json: { type: "boolean", default: false },
      timeout: { type: "string", default: "60" },
    },
  });
  const seconds = Number(values.timeout);
  if (!/^\d{1,6}$/.test(values.timeout)) throw failure(exit.usage, "--timeout takes a number of seconds. See --help.");
  const api = openApi(values.api, io);
  const { clients } = (await api.request("POST", "/drain")) as { clients: number };
  io.stdout.write(
    values.json
      ? `${JSON.stringify({ clients })}\n`
      : `draining: ${clients} client${clients === 1 ? "" : "s"} to close\n`,
  );
  const until = Date.now() + seconds * 1000;
  while (Date.now() < until) {
    try {
      await api.request("GET", "/healthz");
    } catch (error) {
      if ((error as { exitCode?: number }).exitCode === exit.unreachable) return exit.done;
    }
    await sleep(100, undefined, { signal: io.signal });
  }
  if (seconds === 0) return exit.done;
  throw failure(exit.refused, `the gateway has not ended within ${seconds} s`);
});
