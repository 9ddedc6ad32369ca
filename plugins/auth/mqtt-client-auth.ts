import { randomBytes, timingSafeEqual } from "node:crypto";
import type { ConnectContext, Filter, FilterKind, Host } from "@sluice/kernel";
import { saltedSha256 } from "./salted-hash.ts";
import type { Order } from "./salted-hash.ts";

export interface Config {
  readonly salt: string;
  readonly auth: readonly { readonly username: string; readonly saltedSha256Pass: string }[];
  readonly order: Order | "any";
}

/** The result for a client that may not connect, by Easegress' name. */
const failed = "AuthFail";

const kind: FilterKind<Config> = {
  kind: "MQTTClientAuth",
  // Works on Connect; others pass, so that one pipeline can serve several packet types.
  packets: ["Connect", "Publish", "Subscribe", "Unsubscribe", "Disconnect"],
  results: [failed],
  create: createFilter,
};
export default kind;

function createFilter(config: Config, host: Host): Filter {
  const salt = Buffer.from(config.salt);
  const orders: readonly Order[] = config.order === "any" ? ["saltPassword", "passwordSalt"] : [config.order];
  const users = new Map<string, Buffer>();
  for (const { username, saltedSha256Pass } of config.auth) {
    if (users.has(username)) host.log.warn({ username }, "this user is listed twice in auth; the last entry counts");
    users.set(username, Buffer.from(saltedSha256Pass, "hex"));
  }
  if (users.size === 0) host.log.warn({}, "auth lists no user, so every client is refused");

  const attempts = host.metrics.counter(
    "sluice_auth_attempts_total",
    "CONNECT packets that MQTTClientAuth accepted or refused",
    ["filter", "outcome"],
  );
  const accepted = attempts.with({ filter: host.name, outcome: "accepted" });
  const refused = attempts.with({ filter: host.name, outcome: "refused" });
  /** What an unknown user's password is compared with, so that it takes as long as a known one's. */
  const nobody = randomBytes(32);

  function isRight(username: string | undefined, password: Buffer): boolean {
    const known = username === undefined ? undefined : users.get(username);
    const expected = known ?? nobody;
    let matches = 0;
    // No early end: every order is tried, whatever the first comparison said.
    for (const order of orders) matches += Number(timingSafeEqual(saltedSha256(order, salt, password), expected));
    return known !== undefined && matches > 0;
  }

  function authenticate(ctx: ConnectContext): string | undefined {
    const { username, password } = ctx.packet;
    const right = isRight(username, password ?? Buffer.alloc(0));
    if (right && ctx.client.id !== "") {
      accepted.inc();
      return undefined;
    }
    refused.inc();
    host.log.debug({ clientId: ctx.client.id, address: ctx.client.address }, "client refused");
    ctx.reject(right ? "clientIdentifierNotValid" : "badUserNameOrPassword");
    return failed;
  }

  return {
    handle(ctx) {
      return ctx.type === "Connect" ? authenticate(ctx) : undefined;
    },
    health: () => ({ ok: true, detail: `${users.size} ${users.size === 1 ? "user" : "users"}` }),
  };
}
