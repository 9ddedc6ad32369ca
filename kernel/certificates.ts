/** Certificates, keys and authorities in a proxy's options: read, and checked before anything listens. */
import { createPrivateKey, X509Certificate, type KeyObject } from "node:crypto";
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { isMap, type Entry, type Issues } from "./entry.ts";
import type { Path } from "./schema.ts";
import type { CertificatePair } from "./spec.ts";

export interface Reading {
  /** What relative paths are relative to. */
  readonly folder: string;
  readonly found: Issues;
  /** Gets the files that were read. */
  readonly inputs: Set<string>;
}

/** The pairs that are listed at `path`. One with a problem is left out. */
export function readCertificates(proxy: Entry, listed: unknown, path: Path, reading: Reading): CertificatePair[] {
  if (!Array.isArray(listed)) return [];
  return listed.flatMap((item, index) => (isMap(item) ? (readPair(proxy, item, [...path, index], reading) ?? []) : []));
}

/** `clientCA` or `clientCAFile` of the map at `path`. Undefined where it has neither, or one with a problem. */
export function readClientCA(
  proxy: Entry,
  options: Readonly<Record<string, unknown>>,
  path: Path,
  reading: Reading,
): string | undefined {
  const part = readPart(proxy, options, path, "clientCA", reading);
  if (part === undefined) return undefined;
  const { found } = reading;
  const where = proxy.where(part.path);
  const blocks = part.text.match(/-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----/g) ?? [];
  const begun = part.text.match(/-----BEGIN /g)?.length ?? 0;
  if (blocks.length === 0 || blocks.length !== begun) {
    found.problem(
      where,
      begun === 0
        ? "is not PEM: it must begin with -----BEGIN CERTIFICATE----- (is it a placeholder?)"
        : `holds ${begun - blocks.length} parts of ${begun} that are no whole certificates: give certificates in PEM only`,
    );
    return undefined;
  }
  const now = Date.now();
  for (const [index, block] of blocks.entries()) {
    const which = blocks.length === 1 ? "" : `certificate ${index + 1} of ${blocks.length} `;
    try {
      const { ca, validTo } = new X509Certificate(block);
      if (!ca) found.warning(where, `${which}is no authority's: it vouches for itself only`);
      if (now > Date.parse(validTo)) found.warning(where, `${which}has expired on ${validTo}: it vouches for nobody`);
    } catch (error) {
      found.problem(where, `${which}is not a certificate that can be read: ${(error as Error).message}`);
      return undefined;
    }
  }
  return part.text;
}

function readPair(
  proxy: Entry,
  item: Record<string, unknown>,
  path: Path,
  reading: Reading,
): CertificatePair | undefined {
  const { found } = reading;
  const cert = readPart(proxy, item, path, "cert", reading);
  const key = readPart(proxy, item, path, "key", reading);
  for (const [field, part] of [
    ["cert", cert],
    ["key", key],
  ] as const) {
    // Where it is there but no string, the schema has said so.
    if (part === undefined && item[field] === undefined && item[`${field}File`] === undefined)
      found.problem(proxy.where([...path, field]), `is missing: give ${field} or ${field}File`);
  }
  const certificate = cert === undefined ? undefined : parseCertificate(proxy, cert, found);
  const privateKey = key === undefined ? undefined : parseKey(proxy, key, found);
  if (cert === undefined || key === undefined || certificate === undefined || privateKey === undefined)
    return undefined;
  if (!certificate.checkPrivateKey(privateKey)) {
    found.problem(
      proxy.where(key.path),
      "does not belong to the certificate beside it: give the key that the certificate was made with",
    );
    return undefined;
  }
  const now = Date.now();
  if (now > Date.parse(certificate.validTo)) {
    found.warning(proxy.where(cert.path), `has expired on ${certificate.validTo}: clients will refuse it`);
  } else if (now < Date.parse(certificate.validFrom)) {
    found.warning(proxy.where(cert.path), `is not valid before ${certificate.validFrom}: clients will refuse it`);
  }
  return { name: typeof item["name"] === "string" ? item["name"] : "", cert: cert.text, key: key.text };
}

interface Part {
  readonly text: string;
  readonly path: Path;
}

function readPart(
  proxy: Entry,
  item: Readonly<Record<string, unknown>>,
  path: Path,
  field: "cert" | "key" | "clientCA",
  { folder, found, inputs }: Reading,
): Part | undefined {
  const inline = item[field];
  const file = item[`${field}File`];
  if (typeof inline === "string" && typeof file === "string") {
    found.problem(proxy.where([...path, `${field}File`]), `is given beside ${field}: keep one of them`);
    return undefined;
  }
  if (typeof inline === "string") return { text: inline, path: [...path, field] };
  if (typeof file !== "string") return undefined;
  try {
    inputs.add(resolve(folder, file));
    return { text: readFileSync(resolve(folder, file), "utf8"), path: [...path, `${field}File`] };
  } catch (error) {
    found.problem(proxy.where([...path, `${field}File`]), `can't be read: ${(error as Error).message}`);
    return undefined;
  }
}

function parseCertificate(proxy: Entry, part: Part, found: Issues): X509Certificate | undefined {
  if (!part.text.includes("-----BEGIN CERTIFICATE-----")) {
    found.problem(
      proxy.where(part.path),
      "is not PEM: it must begin with -----BEGIN CERTIFICATE----- (is it a placeholder?)",
    );
    return undefined;
  }
  try {
    return new X509Certificate(part.text);
  } catch (error) {
    found.problem(proxy.where(part.path), `is not a certificate that can be read: ${(error as Error).message}`);
    return undefined;
  }
}

function parseKey(proxy: Entry, part: Part, found: Issues): KeyObject | undefined {
  if (!/-----BEGIN [A-Z ]*PRIVATE KEY-----/.test(part.text)) {
    found.problem(
      proxy.where(part.path),
      "is not PEM: it must begin with -----BEGIN PRIVATE KEY----- (is it a placeholder?)",
    );
    return undefined;
  }
  if (/ENCRYPTED/.test(part.text)) {
    found.problem(proxy.where(part.path), "is encrypted: store it without a passphrase");
    return undefined;
  }
  try {
    return createPrivateKey(part.text);
  } catch {
    // The parser's own message could tell something of the key.
    found.problem(proxy.where(part.path), "is not a private key that can be read");
    return undefined;
  }
}
