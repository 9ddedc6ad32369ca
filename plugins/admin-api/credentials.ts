/** Who calls, and what they may: by key, by user and password, or by client certificate. */
import { createHash, timingSafeEqual, X509Certificate, createPrivateKey } from "node:crypto";
import type { IncomingMessage } from "node:http";
import { TLSSocket } from "node:tls";
import type { FieldProblem } from "@sluice/kernel";
import type { Tls } from "./door.ts";
import { isLoopback } from "./origin.ts";

export type Access = "read" | "write";

export interface Key {
  readonly name: string;
  /** SHA-256 of the key, in hexadecimal digits: keys are 256 random bits, which no salt could make harder to guess. */
  readonly hash: string;
  readonly access: Access;
}

export interface CredentialOptions {
  readonly host: string;
  readonly keys: readonly Key[];
  /** Password of each user. */
  readonly basicAuth: Readonly<Record<string, string>>;
  readonly tls?: Tls;
}

export interface Caller {
  /** For the history of changes: `key:NAME`, `user:NAME`, `certificate:CN`, or `anonymous` where nothing is asked for. */
  readonly by: string;
  readonly access: Access;
}

export interface Authenticator {
  /** Undefined for a caller without valid credentials. */
  identify(req: IncomingMessage): Caller | undefined;
  /** The values of WWW-Authenticate. */
  readonly challenges: readonly string[];
}

const sha256 = (text: string): Buffer => createHash("sha256").update(text).digest();

/** TLS has turned away who has no certificate of `tls.clientCA`; keys and users are asked for besides where there are any. */
export function createAuthenticator({ keys, basicAuth }: CredentialOptions): Authenticator {
  const known = [
    ...keys.map(({ name, hash, access }) => ({
      scheme: "bearer",
      digest: Buffer.from(hash, "hex"),
      by: `key:${name}`,
      access,
    })),
    // Of user and password together, so that an unknown user takes as long as a wrong password.
    ...Object.entries(basicAuth).map(([user, password]) => ({
      scheme: "basic",
      digest: sha256(`${user}:${password}`),
      by: `user:${user}`,
      access: "write" as const,
    })),
  ];
  const schemes = new Set(known.map(({ scheme }) => scheme));

  function identify(req: IncomingMessage): Caller | undefined {
    if (known.length === 0) return { by: certificateOf(req) ?? "anonymous", access: "write" };
    const [, scheme = "", value = ""] = /^(\S+) +(\S+) *$/.exec(req.headers.authorization ?? "") ?? [];
    const given = sha256(scheme.toLowerCase() === "basic" ? Buffer.from(value, "base64").toString() : value);
    let found: Caller | undefined;
    // All are compared, and each in constant time: how long it takes tells nothing.
    for (const { scheme: wanted, digest, by, access } of known) {
      const isRight = timingSafeEqual(digest, given);
      if (isRight && wanted === scheme.toLowerCase()) found = { by, access };
    }
    return found;
  }

  return {
    identify,
    challenges: [
      ...(schemes.has("bearer") ? ['Bearer realm="sluice"'] : []),
      ...(schemes.has("basic") ? ['Basic realm="sluice", charset="UTF-8"'] : []),
    ],
  };
}

function certificateOf({ socket }: IncomingMessage): string | undefined {
  if (!(socket instanceof TLSSocket) || !socket.authorized) return undefined;
  const name = socket.getPeerCertificate().subject?.CN;
  return name === undefined ? undefined : `certificate:${[name].flat().join(",")}`;
}

/** What the schema can't say. Never shows a value. */
export function checkCredentials({ host, keys, basicAuth, tls }: CredentialOptions): FieldProblem[] {
  const problems: FieldProblem[] = [];
  if (!isLoopback(host) && keys.length === 0 && Object.keys(basicAuth).length === 0 && tls?.clientCA === undefined) {
    problems.push({
      field: ["host"],
      message:
        "can be reached from other machines, and callers are asked for nothing: give keys, basicAuth or tls.clientCA, or bind 127.0.0.1",
    });
  }
  for (const [index, { name }] of keys.entries()) {
    if (keys.findIndex((key) => key.name === name) < index)
      problems.push({ field: ["keys", index, "name"], message: "another key has this name already: rename one" });
  }
  for (const user of Object.keys(basicAuth)) {
    if (user.includes(":")) problems.push({ field: ["basicAuth", user], message: "a user's name can't hold a colon" });
  }
  return tls ? [...problems, ...checkTls(tls)] : problems;
}

function checkTls({ cert, key, clientCA }: Tls): FieldProblem[] {
  const problems: FieldProblem[] = [];
  const problem = (field: keyof Tls, message: string): void => void problems.push({ field: ["tls", field], message });
  const certificate = attempt(() => new X509Certificate(cert));
  const privateKey = attempt(() => createPrivateKey(key));
  if (!certificate) problem("cert", "is not a certificate in PEM: take a file's content with ${file:cert.pem}");
  if (!privateKey)
    problem("key", "is not a private key in PEM without a passphrase: take a file's content with ${file:key.pem}");
  if (certificate && privateKey && !certificate.checkPrivateKey(privateKey))
    problem("key", "does not belong to the certificate beside it: give the key that the certificate was made with");
  if (clientCA !== undefined && !attempt(() => new X509Certificate(clientCA)))
    problem("clientCA", "is not a certificate in PEM: take a file's content with ${file:ca.pem}");
  return problems;
}

/** OpenSSL's own message could tell something of a key. */
function attempt<T>(parse: () => T): T | undefined {
  try {
    return parse();
  } catch {
    return undefined;
  }
}
