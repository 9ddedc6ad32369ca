import type { ServiceKind } from "@sluice/kernel";

/** As schema.json describes them, defaults filled in. */
interface Options {
  readonly proxy: string;
  readonly topic: string;
  /** Seconds. */
  readonly interval: number;
}

const kind: ServiceKind<Options> = {
  kind: "__Kind__",
  create({ proxy, topic, interval }, host) {
    let timer: { clear(): void } | undefined;
    let problem: string | undefined;

    function wait(): void {
      timer = host.clock.setTimeout(() => void tell(), interval * 1000);
    }

    async function tell(): Promise<void> {
      wait();
      const payload = Buffer.from(new Date(host.clock.now()).toISOString());
      try {
        await host.publish(proxy, { topic, payload, qos: 0, retain: false });
        problem = undefined;
      } catch (error) {
        problem = (error as Error).message;
        host.log.warn({ proxy, topic, error: problem }, "The time could not be told");
      }
    }

    return {
      start: wait,
      stop: () => timer?.clear(),
      health: () => (problem === undefined ? { ok: true } : { ok: false, detail: problem }),
    };
  },
};
export default kind;
