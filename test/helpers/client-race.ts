/**
 * One client id that connects again and again, to any gateway of a cluster, many times at once, as a device on a bad network
 * or its double does, while messages for it are published.
 */
import type { TestContext } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { Packet } from "mqtt-packet";
import { createCrashPublisher } from "./crash-clients.ts";
import { eventually } from "./eventually.ts";
import type { TestGateway } from "./gateway.ts";
import { createRandom } from "./random.ts";
import { openRawClient, type RawClient } from "./raw-client.ts";

export interface RaceReport {
  /** Connections that got a CONNACK 0, and those that were closed or refused instead. */
  readonly accepted: number;
  readonly refused: number;
  /** Connections that are open in the end, when all is quiet. */
  readonly open: number;
  /** Gateways that say the client is connected to them. */
  readonly owners: number;
  readonly acked: number;
  /** Acknowledged messages that the client has not got. */
  readonly missing: string[];
  /** QoS 2 messages that it got twice. */
  readonly doubles: string[];
}

const clientId = "racer";
const patienceMs = 60_000;

export async function race(
  t: TestContext,
  nodes: readonly TestGateway[],
  o: { readonly connects: number; readonly atOnce: number; readonly seed: number },
): Promise<RaceReport> {
  const random = createRandom(o.seed);
  const portOfAny = (): number => nodes[random(nodes.length)]?.port() ?? 0;
  const got = new Set<string>();
  const doubles: string[] = [];
  /** QoS 2 ids between PUBLISH and PUBREL: the session's, whatever connection it has. */
  const begun = new Set<number>();
  const all: RawClient[] = [];
  /** A client listens to the last connection only that was accepted, and never to an older one again. */
  function current(): RawClient | undefined {
    const last = all.at(-1);
    return last?.isClosed === false ? last : undefined;
  }
  let accepted = 0;
  let refused = 0;

  function received(connection: RawClient, packet: Packet): void {
    if (connection !== current()) return;
    if (packet.cmd === "pubrel") {
      begun.delete(packet.messageId ?? 0);
      connection.send({ cmd: "pubcomp", messageId: packet.messageId ?? 0 });
    }
    if (packet.cmd !== "publish") return;
    const { qos, messageId = 0, payload } = packet;
    const text = payload.toString();
    if (qos === 2 && !begun.has(messageId)) {
      begun.add(messageId);
      if (got.has(text)) doubles.push(text);
    }
    got.add(text);
    connection.send({ cmd: qos === 2 ? "pubrec" : "puback", messageId });
  }

  /** Resolves when it is accepted or refused; an accepted one stays until it is taken over. */
  async function connect(): Promise<RawClient | undefined> {
    const connection = await openRawClient(portOfAny());
    t.after(() => connection.destroy());
    const answered = Promise.withResolvers<boolean>();
    connection.onPacket = (packet) => {
      if (packet.cmd !== "connack") {
        received(connection, packet);
        return;
      }
      if (packet.returnCode === 0) all.push(connection);
      answered.resolve(packet.returnCode === 0);
    };
    connection.send({ cmd: "connect", clientId, clean: false, protocolId: "MQTT", protocolVersion: 4 });
    const isAccepted = await Promise.race([answered.promise, connection.closed.then(() => false)]);
    if (isAccepted) accepted++;
    else refused++;
    return isAccepted ? connection : undefined;
  }

  const first = await connect();
  first?.send({
    cmd: "subscribe",
    messageId: 1,
    subscriptions: [
      { topic: "load/race1", qos: 1 },
      { topic: "load/race2", qos: 2 },
    ],
  });
  const publishers = [createCrashPublisher("race1", 1, 2, 20), createCrashPublisher("race2", 2, 2, 20)];
  t.after(() => {
    for (const publisher of publishers) publisher.destroy();
  });
  await eventually(async () => {
    const sessions = (await nodes[0]?.gateway.host.proxies.get("mqttproxy")?.sessions.query()) ?? [];
    return sessions.find((each) => each.clientId === clientId)?.subscriptions.length;
  }, 2);
  for (const publisher of publishers) await publisher.connect(portOfAny());

  let left = o.connects;
  await Promise.all(
    Array.from({ length: o.atOnce }, async () => {
      while (left-- > 0) {
        await connect();
        await sleep(random(20));
      }
    }),
  );
  await Promise.all(publishers.map((publisher) => publisher.finish()));
  // Whoever was refused last comes again, as a device does.
  await eventually(
    async () => {
      if (!current()) await connect();
      return publishers.flatMap(({ acked }) => [...acked]).filter((payload) => !got.has(payload)).length;
    },
    0,
    patienceMs,
  ).catch(() => undefined);
  const isConnected = async ({ gateway }: TestGateway): Promise<boolean> =>
    gateway.host.proxies.get("mqttproxy")?.status()["connections"] !== 0;
  for (const publisher of publishers) publisher.destroy();
  await eventually(() => all.filter(({ isClosed }) => !isClosed).length, 1, patienceMs).catch(() => undefined);
  await eventually(async () => (await Promise.all(nodes.map(isConnected))).filter(Boolean).length, 1).catch(
    () => undefined,
  );
  const acked = publishers.flatMap((each) => [...each.acked]);
  return {
    accepted,
    refused,
    open: all.filter(({ isClosed }) => !isClosed).length,
    owners: (await Promise.all(nodes.map(isConnected))).filter(Boolean).length,
    acked: acked.length,
    missing: acked.filter((payload) => !got.has(payload)),
    doubles,
  };
}
