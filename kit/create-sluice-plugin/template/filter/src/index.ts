import type { FilterKind } from "@sluice/kernel";

/** As schema.json describes them, defaults filled in. */
interface Options {
  readonly field: string;
}

const kind: FilterKind<Options> = {
  kind: "__Kind__",
  packets: ["Publish"],
  results: ["notJson"],
  discards: ["notJson"],
  create({ field }, host) {
    const stamped = host.metrics
      .counter("__metric___messages_total", "Messages that __Kind__ has stamped.", ["filter"])
      .with({ filter: host.name });

    return {
      handle(ctx) {
        if (ctx.type !== "Publish") return;
        const value = parseObject(ctx.packet.payload);
        if (!value) return "notJson";
        ctx.packet.payload = Buffer.from(JSON.stringify({ ...value, [field]: ctx.client.id }));
        stamped.inc();
      },
    };
  },
};
export default kind;

function parseObject(payload: Buffer): object | undefined {
  try {
    const value: unknown = JSON.parse(payload.toString());
    return typeof value === "object" && value !== null && !Array.isArray(value) ? value : undefined;
  } catch {
    return undefined;
  }
}
