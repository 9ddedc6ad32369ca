/** PROXY protocol headers, byte by byte: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { parseProxyHeader } from "../../kernel/proxy-protocol.ts";
import { binaryHeader } from "../helpers/proxy-header.ts";

const text = (line: string): Buffer => Buffer.from(line, "latin1");
const behind = text("\x10\x0d the packet");

const v4 = Buffer.from([192, 0, 2, 7, 198, 51, 100, 1, 0x30, 0x39, 7, 91]);
const v6 = (address: string): Buffer =>
  Buffer.concat([Buffer.from(address, "hex"), Buffer.alloc(16, 1), Buffer.alloc(4)]);
const tlvs = Buffer.concat([Buffer.from([0x05, 0, 4]), text("uniq"), Buffer.from([0x04, 1, 0]), Buffer.alloc(256)]);

const whole: [name: string, header: Buffer, address: string | undefined][] = [
  ["1, IPv4", text("PROXY TCP4 192.0.2.7 198.51.100.1 12345 1883\r\n"), "192.0.2.7"],
  ["1, IPv6", text("PROXY TCP6 2001:db8::7 2001:db8::1 0 65535\r\n"), "2001:db8::7"],
  ["1, IPv4 in IPv6", text("PROXY TCP6 ::ffff:192.0.2.7 ::1 1 2\r\n"), "192.0.2.7"],
  ["1, unknown", text("PROXY UNKNOWN\r\n"), undefined],
  ["1, unknown with addresses", text("PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n"), undefined],
  ["2, IPv4", binaryHeader({ addresses: v4 }), "192.0.2.7"],
  ["2, IPv4 with TLVs", binaryHeader({ addresses: Buffer.concat([v4, tlvs]) }), "192.0.2.7"],
  ["2, IPv6", binaryHeader({ family: 2, addresses: v6("20010db8000000000000000000000007") }), "2001:db8::7"],
  ["2, IPv4 in IPv6", binaryHeader({ family: 2, addresses: v6("00000000000000000000ffffc0000207") }), "192.0.2.7"],
  ["2, a unix socket", binaryHeader({ family: 3, addresses: Buffer.alloc(216) }), undefined],
  ["2, no address", binaryHeader({ family: 0, transport: 0, addresses: tlvs }), undefined],
  ["2, datagrams", binaryHeader({ transport: 2, addresses: v4 }), undefined],
  ["2, the proxy itself", binaryHeader({ command: 0, family: 0, transport: 0, addresses: Buffer.alloc(0) }), undefined],
  ["2, the proxy itself, addresses to be ignored", binaryHeader({ command: 0, addresses: v4 }), undefined],
];

const wrong: [name: string, header: Buffer][] = [
  ["MQTT", text("\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00")],
  ["TLS", Buffer.from([0x16, 3, 1, 2, 0])],
  ["another word", text("PROXI TCP4 ")],
  ["another family", text("PROXY TCP5 192.0.2.7 198.51.100.1 1 2\r\n")],
  ["datagrams in version 1", text("PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n")],
  ["no address", text("PROXY TCP4 192.0.2 198.51.100.1 1 2\r\n")],
  ["an address of the other family", text("PROXY TCP4 2001:db8::7 2001:db8::1 1 2\r\n")],
  ["no target", text("PROXY TCP4 192.0.2.7\r\n")],
  ["one port", text("PROXY TCP4 192.0.2.7 198.51.100.1 1\r\n")],
  ["three ports", text("PROXY TCP4 192.0.2.7 198.51.100.1 1 2 3\r\n")],
  ["a port too large", text("PROXY TCP4 192.0.2.7 198.51.100.1 65536 2\r\n")],
  ["a port with a sign", text("PROXY TCP4 192.0.2.7 198.51.100.1 +1 2\r\n")],
  ["two spaces", text("PROXY TCP4  192.0.2.7 198.51.100.1 1 2\r\n")],
  ["a line without an end", text(`PROXY UNKNOWN ${"x".repeat(107)}`)],
  ["a line end behind 107 bytes", text(`PROXY UNKNOWN ${"x".repeat(92)}\r\n`)],
  ["version 1 in binary", binaryHeader({ version: 1, addresses: v4 })],
  ["version 3", binaryHeader({ version: 3, addresses: v4 })],
  ["another command", binaryHeader({ command: 2, addresses: v4 })],
  ["another family in binary", binaryHeader({ family: 4, addresses: v4 })],
  ["another transport", binaryHeader({ transport: 3, addresses: v4 })],
  ["too short for its family", binaryHeader({ family: 2, addresses: v4 })],
  ["more than 4096 bytes", binaryHeader({ addresses: Buffer.alloc(4081) })],
];

describe("a PROXY header", () => {
  for (const [name, header, address] of whole) {
    test(`of version ${name}: whole with its last byte and not before; what follows is no part of it`, () => {
      const expected = { state: "whole", length: header.length, address };
      for (let length = 0; length < header.length; length++)
        assert.deepEqual(parseProxyHeader(header.subarray(0, length)), { state: "incomplete" }, `${length} bytes`);
      assert.deepEqual(parseProxyHeader(header), expected);
      assert.deepEqual(parseProxyHeader(Buffer.concat([header, behind])), expected);
    });
  }

  for (const [name, header] of wrong) {
    test(`that is none: ${name}`, () => {
      const { state } = parseProxyHeader(header);
      assert.equal(state, "malformed");
      // Found out as soon as it can be: what was let through on the way was incomplete, never whole.
      for (let length = 0; length < header.length; length++)
        assert.notEqual(parseProxyHeader(header.subarray(0, length)).state, "whole", `${length} bytes`);
    });
  }
});
