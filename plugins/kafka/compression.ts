/**
 * Codecs that kafkajs has none of: zstd is Node's own; snappy and lz4 are packages that are installed where they are
 * wanted. The only importer of both.
 */
import { createRequire } from "node:module";
import { promisify } from "node:util";
import { zstdCompress, zstdDecompress } from "node:zlib";

export type Compression = "none" | "gzip" | "snappy" | "lz4" | "zstd";

export interface Codec {
  compress(encoder: { buffer: Buffer }): Promise<Buffer>;
  decompress(buffer: Buffer): Promise<Buffer>;
}

const load = createRequire(import.meta.url);
const packages: Partial<Record<Compression, string>> = { snappy: "snappy", lz4: "lz4-napi" };

/** What has to be installed, in words. */
export function compressionProblem(compression: Compression): string | undefined {
  const name = packages[compression];
  if (name === undefined) return undefined;
  try {
    load.resolve(name);
    return undefined;
  } catch {
    return `${compression} needs the package ${name}, which is not installed: npm install ${name}, or use gzip or zstd`;
  }
}

/** Undefined where kafkajs needs no help. */
export function loadCodec(compression: Compression): Codec | undefined {
  if (compression === "zstd") {
    const compress = promisify(zstdCompress);
    const decompress = promisify(zstdDecompress);
    return { compress: ({ buffer }) => compress(buffer), decompress };
  }
  if (compression === "snappy") {
    const snappy = load("snappy") as typeof import("snappy");
    const decompress = async (buffer: Buffer) => snappy.uncompressSync(buffer, { asBuffer: true }) as Buffer;
    return { compress: ({ buffer }) => snappy.compress(buffer), decompress };
  }
  if (compression === "lz4") {
    const lz4 = load("lz4-napi") as typeof import("lz4-napi");
    return { compress: ({ buffer }) => lz4.compressFrame(buffer), decompress: (buffer) => lz4.decompressFrame(buffer) };
  }
  return undefined;
}
