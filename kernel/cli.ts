#!/usr/bin/env node
/** The `sluice` command. Nothing else is imported before the version of Node is known to do. */
if (Number(process.versions.node.split(".")[0]) < 24) {
  process.stderr.write(`sluice needs Node.js 24 or newer; this is ${process.version}\n`);
  process.exit(2);
}
// The reader of a pipe may leave early (`sluice schema | head`): that is no failure.
process.stdout.on("error", (error: NodeJS.ErrnoException) => process.exit(error.code === "EPIPE" ? 0 : 1));
const { main } = await import("./cli/main.ts");
const code = await main(process.argv.slice(2), [process.argv[1] ?? import.meta.filename, import.meta.filename]);
// A command may leave connections open that would keep the process for seconds; what it wrote shall still arrive.
process.stdout.write("", () => process.exit(code));
