/** CPU microseconds a packet of the codec: `node test/bench/codec.ts`. */
import { generate, parser } from "mqtt-packet";
import { createDecoder, encodeAck, encodePublishTemplate, publishFromTemplate } from "../../kernel/codec.ts";

const packets = 400_000;
const message = {
  topic: "fleet/042/device/12345/log".slice(0, 26),
  payload: Buffer.alloc(128, 0x61),
  qos: 1,
  retain: false,
} as const;
const publish = generate({ cmd: "publish", dup: false, messageId: 7, ...message });
const connect = generate({ cmd: "connect", clientId: "bench" });

function report(name: string, count: number, run: () => void): void {
  run();
  const start = process.cpuUsage();
  run();
  const { user, system } = process.cpuUsage(start);
  console.log(`${name.padEnd(48)} ${((user + system) / count).toFixed(3)} us`);
}

/** The stream of these packets cut into chunks of this size. */
function chunksOf(size: number, packet = publish): Buffer[] {
  const stream = Buffer.concat(Array.from({ length: 2000 }, () => packet));
  const chunks: Buffer[] = [];
  for (let at = 0; at < stream.length; at += size) chunks.push(stream.subarray(at, at + size));
  return chunks;
}

console.log(`${publish.length} bytes a PUBLISH`);
for (const size of [65_536, 1460, 512, publish.length, 64]) {
  const chunks = chunksOf(size);
  report(`decode, chunks of ${size}`, packets, () => {
    let count = 0;
    const decoder = createDecoder({ maxPacketBytes: 1 << 20, onPacket: () => ++count > 0 });
    decoder.push(connect);
    for (let n = 0; n < packets / 2000; n++) for (const chunk of chunks) decoder.push(chunk);
    if (count !== packets + 1) throw new Error(`${count} packets`);
  });
  report(`stock mqtt-packet, unchecked, chunks of ${size}`, packets, () => {
    let count = 0;
    const stock = parser();
    stock.on("packet", () => count++);
    for (let n = 0; n < packets / 2000; n++) for (const chunk of chunks) stock.parse(chunk);
    if (count !== packets) throw new Error(`${count} packets`);
  });
}
const v5 = { protocolVersion: 5 } as const;
const connectV5 = generate({ cmd: "connect", clientId: "bench", protocolVersion: 5 });
const properties = {
  contentType: "application/json",
  messageExpiryInterval: 60,
  userProperties: { site: "b", line: "7" },
};
for (const [name, packet] of [
  ["MQTT 5", generate({ cmd: "publish", dup: false, messageId: 7, ...message }, v5)],
  ["MQTT 5 with 4 properties", generate({ cmd: "publish", dup: false, messageId: 7, ...message, properties }, v5)],
] as const) {
  const chunks = chunksOf(65_536, packet);
  report(`decode, ${name}`, packets, () => {
    let count = 0;
    const decoder = createDecoder({ maxPacketBytes: 1 << 20, onPacket: () => ++count > 0 });
    decoder.push(connectV5);
    for (let n = 0; n < packets / 2000; n++) for (const chunk of chunks) decoder.push(chunk);
    if (count !== packets + 1) throw new Error(`${count} packets`);
  });
  report(`stock mqtt-packet, unchecked, ${name}`, packets, () => {
    let count = 0;
    const stock = parser(v5);
    stock.on("packet", () => count++);
    for (let n = 0; n < packets / 2000; n++) for (const chunk of chunks) stock.parse(chunk);
    if (count !== packets) throw new Error(`${count} packets`);
  });
}
const form = { qos: 1, retain: false, protocolVersion: 4, identifiers: [], alias: "none" } as const;
const template = encodePublishTemplate(message, form);
report("encodePublishTemplate", packets, () => {
  for (let n = 0; n < packets; n++) encodePublishTemplate(message, form);
});
report("publishFromTemplate", packets, () => {
  for (let n = 0; n < packets; n++) publishFromTemplate(template, { packetId: (n % 65_535) + 1, dup: false });
});
report("encodeAck", packets, () => {
  for (let n = 0; n < packets; n++) encodeAck("puback", (n % 65_535) + 1);
});

const idle = Array.from({ length: 20_000 }, () => undefined as unknown);
globalThis.gc?.();
const before = process.memoryUsage().heapUsed;
const onPacket = (): boolean => true;
for (let n = 0; n < idle.length; n++) {
  const decoder = createDecoder({ maxPacketBytes: 1 << 20, onPacket });
  decoder.push(connect);
  idle[n] = decoder;
}
globalThis.gc?.();
console.log(`${((process.memoryUsage().heapUsed - before) / idle.length).toFixed(0)} heap bytes an idle decoder`);
