/** `sluice key`: a new key for the HTTP API, and its entry for the config. */
import { createHash, randomBytes } from "node:crypto";
import { parseArgs } from "node:util";
import { exit, failure } from "./api.ts";
import { defineCommand } from "./command.ts";

const help = `Usage: sluice key <name> [options]

Make a random key for the gateway's HTTP API. On standard output comes its entry for the \`keys\` list of an AdminAPI,
which holds only a hash; on standard error the key itself, this once. Callers send it as "Authorization: Bearer KEY",
commands take it from SLUICE_API_KEY.

Options:
      --access read|write  what callers with the key may do (default read)
      --json               print key and entry as one JSON object, on standard output

Exit codes: 0 printed, 2 wrong usage

Example: sluice key ci --access write`;

export default defineCommand("make a key for the HTTP API", help, (args, io) => {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: { access: { type: "string", default: "read" }, json: { type: "boolean", default: false } },
  });
  const [name, ...others] = positionals;
  const { access } = values;
  if (!name || others.length > 0) throw failure(exit.usage, "sluice key takes one name: whose key is it? See --help.");
  if (access !== "read" && access !== "write")
    throw failure(exit.usage, `--access must be read or write, not "${access}".`);
  const key = `sluice_${randomBytes(32).toString("base64url")}`;
  const hash = createHash("sha256").update(key).digest("hex");
  if (values.json) io.stdout.write(`${JSON.stringify({ key, entry: { name, hash, access } })}\n`);
  else {
    io.stderr.write(`The key, which is shown this once: ${key}\n`);
    // JSON strings are YAML strings, whatever the name holds, and a hash of digits stays a string.
    io.stdout.write(`- name: ${JSON.stringify(name)}\n  hash: ${JSON.stringify(hash)}\n  access: ${access}\n`);
  }
  return Promise.resolve(exit.done);
});
