/** What is to be published for this node's clients if it dies, kept by its incarnation. */
import type { ClusterNode, ClusterWills } from "@sluice/kernel/cluster";
import type { Layout, ProxyLayout } from "./layout.ts";
import type { Publisher } from "./publisher.ts";
import type { Reads } from "./reads.ts";

export interface WillsDeps {
  readonly node: ClusterNode;
  readonly layout: Layout;
  readonly proxy: ProxyLayout;
  readonly reads: Reads;
  readonly publisher: Publisher;
  readonly now: () => number;
}

const batch = 256;
const registerEveryMs = 86_400_000;
const registerHead = Buffer.from("NATS/1.0\r\nNats-TTL: 720h\r\n\r\n");
const noHead = Buffer.from("NATS/1.0\r\n\r\n");
/** A will that was taken back goes by itself. */
const deletedHead = Buffer.from("NATS/1.0\r\nNats-TTL: 60s\r\n\r\n");
const empty = Buffer.alloc(0);

export function createWills({ node, layout, proxy, reads, publisher, now }: WillsDeps): ClusterWills {
  let registered: Promise<unknown> | undefined;
  let registeredAt = -Infinity;

  /** That there is anything of this incarnation: how those who come later find it. */
  async function register(): Promise<void> {
    if (now() - registeredAt > registerEveryMs) registered = undefined;
    registered ??= publisher.write(layout.willsOf(node.incarnation), Buffer.from(node.id), registerHead);
    try {
      await registered;
      if (registeredAt === -Infinity || now() - registeredAt > registerEveryMs) registeredAt = now();
    } catch (error) {
      registered = undefined;
      throw error;
    }
  }

  const drop = async (incarnation: string, clientId: string): Promise<void> => {
    await publisher.write(proxy.will(incarnation, clientId), empty, deletedHead);
  };
  return {
    async put(clientId, value) {
      await register();
      const id = Buffer.from(clientId);
      const length = Buffer.alloc(2);
      length.writeUInt16BE(id.length);
      await publisher.write(proxy.will(node.incarnation, clientId), Buffer.concat([length, id, value]), noHead);
    },
    delete: (clientId) => drop(node.incarnation, clientId),
    drop,
    async *of(incarnation) {
      const stream = layout.streams.wills;
      const { last: end } = await reads.state(stream);
      for (let seq = 1; seq <= end;) {
        const page = await reads.page(stream, proxy.willsOf(incarnation), { seq, batch, end });
        seq = page.upTo + 1;
        const piece = page.found.flatMap(({ body }) => {
          if (body.length === 0) return [];
          const idEnd = 2 + body.readUInt16BE(0);
          return [{ clientId: body.toString("utf8", 2, idEnd), value: body.subarray(idEnd) }];
        });
        if (piece.length > 0) yield piece;
      }
    },
  };
}

/** The incarnations that have had a will, of the last month. */
export async function listIncarnations({ layout, reads }: Pick<WillsDeps, "layout" | "reads">): Promise<ClusterNode[]> {
  const stream = layout.streams.wills;
  const { last: end } = await reads.state(stream);
  const nodes: ClusterNode[] = [];
  for (let seq = 1; seq <= end;) {
    const page = await reads.page(stream, layout.willsOf("*"), { seq, batch, end });
    seq = page.upTo + 1;
    for (const { subject, body } of page.found) {
      if (body.length > 0)
        nodes.push({ id: body.toString(), incarnation: subject.slice(subject.lastIndexOf(".") + 1) });
    }
  }
  return nodes;
}

/** Nothing of it is left to see to. */
export async function forgetIncarnation(
  { layout, publisher }: Pick<WillsDeps, "layout" | "publisher">,
  incarnation: string,
): Promise<void> {
  await publisher.write(layout.willsOf(incarnation), empty, deletedHead);
}
