/** An operator of NATS, its accounts and users, as the JWTs that a server and a `.creds` file have. */
import { randomBytes } from "node:crypto";
import { nkeys } from "../../plugins/nats-cluster/node_modules/@nats-io/transport-node/lib/mod.js";

type KeyPair = ReturnType<typeof nkeys.createUser>;

export interface NatsOperator {
  /** For the config of a server. */
  readonly config: string;
  /** The content of a `.creds` file. */
  creds(): string;
}

export function createOperator(): NatsOperator {
  const operator = nkeys.createOperator();
  const [account, system] = [nkeys.createAccount(), nkeys.createAccount()];
  const limits = { subs: -1, data: -1, payload: -1, imports: -1, exports: -1, wildcards: true, conn: -1, leaf: -1 };
  const storage = { mem_storage: -1, disk_storage: -1, streams: -1, consumer: -1 };
  const jwts = [
    [account, sign(operator, account, "gateways", { type: "account", limits: { ...limits, ...storage } })],
    [system, sign(operator, system, "SYS", { type: "account", limits })],
  ] as const;
  const lines = jwts.map(([key, jwt]) => `${key.getPublicKey()}: ${jwt}`);
  return {
    config: [
      `operator: ${sign(operator, operator, "operator", { type: "operator" })}`,
      `system_account: ${system.getPublicKey()}`,
      "resolver: MEMORY",
      `resolver_preload: { ${lines.join(", ")} }`,
    ].join("\n"),
    creds() {
      const user = nkeys.createUser();
      const jwt = sign(account, user, "gateway", { type: "user", subs: -1, data: -1, payload: -1, pub: {}, sub: {} });
      const seed = new TextDecoder().decode(user.getSeed());
      return [
        `-----BEGIN NATS USER JWT-----\n${jwt}\n------END NATS USER JWT------\n`,
        `-----BEGIN USER NKEY SEED-----\n${seed}\n------END USER NKEY SEED------\n`,
      ].join("\n");
    },
  };
}

function sign(issuer: KeyPair, subject: KeyPair, name: string, nats: object): string {
  const claims = {
    jti: randomBytes(16).toString("hex"),
    iat: Math.floor(Date.now() / 1000),
    iss: issuer.getPublicKey(),
    sub: subject.getPublicKey(),
    name,
    nats: { ...nats, version: 2 },
  };
  const text = [{ typ: "JWT", alg: "ed25519-nkey" }, claims]
    .map((part) => Buffer.from(JSON.stringify(part)).toString("base64url"))
    .join(".");
  return `${text}.${Buffer.from(issuer.sign(Buffer.from(text))).toString("base64url")}`;
}
