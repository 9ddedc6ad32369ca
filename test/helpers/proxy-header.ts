/** A PROXY protocol header of version 2, right or wrong. Addresses come with their ports, and with any TLVs behind them. */
export function binaryHeader(o: {
  addresses: Buffer;
  version?: number;
  command?: number;
  family?: number;
  transport?: number;
}): Buffer {
  const { addresses, version = 2, command = 1, family = 1, transport = 1 } = o;
  const head = Buffer.from("\r\n\r\n\0\r\nQUIT\n\0\0\0\0", "latin1");
  head.writeUInt8((version << 4) | command, 12);
  head.writeUInt8((family << 4) | transport, 13);
  head.writeUInt16BE(addresses.length, 14);
  return Buffer.concat([head, addresses]);
}
