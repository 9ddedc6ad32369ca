/** Authorities of a test's own, and what they issue. */
import { generate } from "selfsigned";

export interface Identity {
  readonly cert: string;
  readonly key: string;
}

type AltNames = { type: 1 | 2 | 6 | 7; value?: string; ip?: string }[];

const fields = (cn: string | undefined): { name: string; value: string }[] =>
  cn === undefined ? [{ name: "organizationName", value: "Test" }] : [{ name: "commonName", value: cn }];

export async function createAuthority(cn: string): Promise<Identity> {
  const { cert, private: key } = await generate(fields(cn), {
    keyType: "ec",
    algorithm: "sha256",
    extensions: [
      { name: "basicConstraints", cA: true, critical: true },
      { name: "keyUsage", keyCertSign: true, cRLSign: true, critical: true },
    ],
  });
  return { cert, key };
}

export async function issue(
  ca: Identity,
  o: { cn?: string; altNames?: AltNames; notAfterDate?: Date; notBeforeDate?: Date },
): Promise<Identity> {
  const { cn, altNames, ...dates } = o;
  const { cert, private: key } = await generate(fields(cn), {
    keyType: "ec",
    algorithm: "sha256",
    ca,
    ...dates,
    extensions: [
      { name: "basicConstraints", cA: false },
      { name: "extKeyUsage", clientAuth: true, serverAuth: true },
      ...(altNames ? [{ name: "subjectAltName" as const, altNames }] : []),
    ],
  });
  return { cert, key };
}
