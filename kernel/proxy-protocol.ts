/** The PROXY protocol, versions 1 and 2: what a load balancer puts in front of a connection to say whose it is. */
import { isIPv4, isIPv6, type Socket } from "node:net";

export type ProxyHeader =
  | { readonly state: "incomplete" }
  | { readonly state: "malformed"; readonly why: string }
  /**
   * `length` bytes of it. `address` is undefined where the header tells none: the proxy itself connects (a health check),
   * or by another family than IP.
   */
  | { readonly state: "whole"; readonly length: number; readonly address: string | undefined };

const incomplete: ProxyHeader = { state: "incomplete" };
const malformed = (why: string): ProxyHeader => ({ state: "malformed", why });

/** Of version 1, with its line end. */
const maxLineBytes = 107;

/** Of version 2 with all its TLVs, of which nothing is used: those in use take a few hundred bytes. */
const maxHeaderBytes = 4096;

const lineStart = Buffer.from("PROXY ");
const signature = Buffer.from("\r\n\r\n\0\r\nQUIT\n", "latin1");

/** @param bytes what has come so far; behind the header, what it carries begins */
export function parseProxyHeader(bytes: Buffer): ProxyHeader {
  if (startsLike(bytes, signature)) return bytes.length < 16 ? incomplete : parseBinary(bytes);
  if (startsLike(bytes, lineStart)) return parseLine(bytes);
  return malformed("it does not begin with a PROXY header");
}

function startsLike(bytes: Buffer, start: Buffer): boolean {
  const length = Math.min(bytes.length, start.length);
  return bytes.subarray(0, length).equals(start.subarray(0, length));
}

function parseLine(bytes: Buffer): ProxyHeader {
  const end = bytes.subarray(0, maxLineBytes).indexOf("\r\n");
  if (end < 0) return bytes.length < maxLineBytes ? incomplete : malformed(`its line exceeds ${maxLineBytes} bytes`);
  const [, family, source = "", target = "", ...ports] = bytes.toString("latin1", 0, end).split(" ");
  const length = end + 2;
  if (family === "UNKNOWN") return { state: "whole", length, address: undefined };
  const isAddress = family === "TCP4" ? isIPv4 : family === "TCP6" ? isIPv6 : () => false;
  const isPort = (port: string): boolean => /^(0|[1-9]\d{0,4})$/.test(port) && Number(port) < 65_536;
  if (!isAddress(source) || !isAddress(target) || ports.length !== 2 || !ports.every(isPort))
    return malformed("its line is not of the form PROXY TCP4 source target port port");
  return { state: "whole", length, address: source.replace(/^::ffff:(?=\d+\.)/i, "") };
}

function parseBinary(bytes: Buffer): ProxyHeader {
  const [versionAndCommand, familyAndTransport] = [bytes.readUInt8(12), bytes.readUInt8(13)];
  const [command, family, transport] = [versionAndCommand & 15, familyAndTransport >> 4, familyAndTransport & 15];
  const length = 16 + bytes.readUInt16BE(14);
  if (versionAndCommand >> 4 !== 2) return malformed("its version is not 2");
  if (command > 1) return malformed("its command is neither LOCAL nor PROXY");
  if (family > 3 || transport > 2) return malformed("its address family or transport is not known");
  if (length > maxHeaderBytes) return malformed(`it exceeds ${maxHeaderBytes} bytes`);
  const isLocal = command === 0;
  // Two addresses and, but for unix sockets, two ports.
  const needed = [0, 12, 36, 216][family] ?? 0;
  if (!isLocal && length < 16 + needed) return malformed("it is too short for its address family");
  if (bytes.length < length) return incomplete;
  const isStream = transport === 1;
  if (isLocal || !isStream || family === 0 || family === 3) return { state: "whole", length, address: undefined };
  return { state: "whole", length, address: family === 1 ? [...bytes.subarray(16, 20)].join(".") : ipv6(bytes) };
}

function ipv6(bytes: Buffer): string {
  const mapped = Buffer.from("00000000000000000000ffff", "hex");
  if (bytes.subarray(16, 28).equals(mapped)) return [...bytes.subarray(28, 32)].join(".");
  const groups = Array.from({ length: 8 }, (_, index) => bytes.readUInt16BE(16 + 2 * index).toString(16));
  // The shortest form, as addresses of sockets are written.
  return new URL(`http://[${groups.join(":")}]`).hostname.slice(1, -1);
}

/**
 * Takes the header off a socket and leaves it paused, with what came behind the header still in it.
 * @param done gets the client's address, undefined where it is the socket's own
 */
export function readProxyHeader(
  socket: Socket,
  done: (address: string | undefined) => void,
  failed: (why: string) => void,
): void {
  let bytes: Buffer = Buffer.alloc(0);
  function onData(chunk: Buffer): void {
    bytes = bytes.length === 0 ? chunk : Buffer.concat([bytes, chunk]);
    const header = parseProxyHeader(bytes);
    if (header.state === "incomplete") return;
    socket.off("data", onData);
    socket.pause();
    if (header.state === "malformed") {
      failed(header.why);
      return;
    }
    if (bytes.length > header.length) socket.unshift(bytes.subarray(header.length));
    done(header.address);
  }
  socket.on("data", onData);
}
