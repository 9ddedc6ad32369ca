/** The options of NATSCluster, as the schema leaves them. */
import { createPrivateKey, X509Certificate } from "node:crypto";
import { createSecureContext } from "node:tls";
import type { FieldProblem } from "@sluice/kernel";
import { credentialsProblem } from "./connection.ts";

export interface Credentials {
  readonly user?: string;
  readonly password?: string;
  readonly token?: string;
  /** The content of a `.creds` file. */
  readonly creds?: string;
  /** The seed of an nkey. */
  readonly nkey?: string;
}

export interface Config extends Credentials {
  readonly servers: readonly string[];
  readonly namespace: string;
  readonly nodeName: string;
  readonly tls?: { readonly ca?: string; readonly cert?: string; readonly key?: string };
  readonly shards: number;
  readonly replicas: number;
  readonly log: { readonly retention: string; readonly maxBytes: number };
  readonly interest: { readonly max: number };
  readonly fence: { readonly grace: number };
  readonly timeouts: { readonly ackMs: number; readonly totalMs: number; readonly kickMs: number };
  readonly maxInFlight: number;
}

export function problemsOf(config: Config): FieldProblem[] {
  const problems: FieldProblem[] = [];
  const ways = (["user", "token", "creds", "nkey"] as const).filter((each) => config[each] !== undefined);
  for (const way of ways.slice(1)) {
    problems.push({ field: [way], message: `there is ${ways[0]} already: keep one of user, token, creds and nkey` });
  }
  if (config.password !== undefined && config.user === undefined) {
    problems.push({ field: ["password"], message: "a password needs a user" });
  }
  if ((config.tls?.cert === undefined) !== (config.tls?.key === undefined)) {
    problems.push({ field: ["tls"], message: "cert and key go together" });
  }
  const unusable = credentialsProblem(config);
  if (unusable) problems.push({ field: [unusable.way], message: unusable.problem });
  if (config.tls) problems.push(...tlsProblems(config.tls));
  if (config.timeouts.ackMs > config.timeouts.totalMs) {
    problems.push({ field: ["timeouts", "ackMs"], message: "is longer than totalMs" });
  }
  return problems;
}

/** Each by itself, so that the one that can't be read is named. */
function tlsProblems({ ca, cert, key }: NonNullable<Config["tls"]>): FieldProblem[] {
  const problems: FieldProblem[] = [];
  const attempt = (field: string, message: string, read: () => unknown): void => {
    try {
      read();
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      problems.push({ field: ["tls", field], message: `${message} (${reason})` });
    }
  };
  // Of an authority that it can't read a TLS context says nothing.
  if (ca !== undefined) attempt("ca", "is no PEM certificate", () => new X509Certificate(ca));
  if (cert !== undefined) attempt("cert", "is no PEM certificate", () => createSecureContext({ cert }));
  if (key !== undefined) attempt("key", "is no PEM private key without a passphrase", () => createPrivateKey(key));
  if (problems.length === 0 && cert !== undefined && key !== undefined) {
    attempt("key", "is not the key of tls.cert", () => createSecureContext({ cert, key }));
  }
  return problems;
}

const unitsMs = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** `6h` in milliseconds. */
export function durationMs(text: string): number {
  return Number(text.slice(0, -1)) * unitsMs[text.slice(-1) as keyof typeof unitsMs];
}
