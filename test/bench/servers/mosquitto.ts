/** Mosquitto, of Debian's package of that name. */
import { existsSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { findFreePort } from "../../helpers/free-port.ts";
import { type ServerKind, spawnServer } from "./server.ts";

const command = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"].find(existsSync) ?? "mosquitto";

export const mosquitto: ServerKind = {
  name: "mosquitto",
  setups: ["broker", "tls"],
  async start({ setup, folder, identity }) {
    const [file, cert, key] = ["mosquitto.conf", "cert.pem", "key.pem"].map((name) => join(folder, name)) as [
      string,
      string,
      string,
    ];
    const port = await findFreePort();
    await writeFile(cert, identity.cert);
    await writeFile(key, identity.key, { mode: 0o600 });
    // Where messages would be dropped rather than wait, fewer deliveries would look like faster ones.
    const lines = [`listener ${port} 127.0.0.1`, "allow_anonymous true", "max_queued_messages 0", "log_type error"];
    if (setup === "tls") lines.push(`certfile ${cert}`, `keyfile ${key}`);
    // Started as root it would become a user who may not read the key.
    if (process.getuid?.() === 0) lines.push("user root");
    await writeFile(file, `${lines.join("\n")}\n`);
    const address = { host: "127.0.0.1", port, ca: setup === "tls" ? identity.cert : undefined };
    return spawnServer(command, ["-c", file], address);
  },
};
