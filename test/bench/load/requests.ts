/** Backends that publish by HTTP: connections that are kept, each with one request at a time. */
import { connect, type Socket } from "node:net";
import { nowMs } from "./frames.ts";
import { createLatencies } from "./latencies.ts";
import type { Load } from "./load.ts";

export interface RequestsOptions {
  readonly host: string;
  readonly port: number;
  readonly path: string;
  readonly body: string;
  readonly connections: number;
  /** Requests a second of all together, each on a connection that is free; without it, the next when one is answered. */
  readonly rate?: number | undefined;
}

export const requests: Load<RequestsOptions> = {
  async start({ host, port, path, body, connections, rate }) {
    const request = Buffer.from(
      `POST ${path} HTTP/1.1\r\nHost: ${host}:${port}\r\nContent-Type: application/json\r\n` +
        `Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
    );
    const latencies = createLatencies();
    const totals = { sent: 0, acked: 0, skipped: 0, closed: 0 };
    const statuses: Record<string, number> = {};
    const free: (() => void)[] = [];
    let stopping = false;

    async function open(): Promise<Socket> {
      const socket = connect({ host, port, noDelay: true });
      const { promise, resolve, reject } = Promise.withResolvers<void>();
      socket.once("connect", resolve).once("error", reject);
      await promise;
      let sentAt = 0;
      let text = "";
      function send(): void {
        sentAt = nowMs();
        totals.sent++;
        socket.write(request);
      }
      socket.on("data", (chunk: Buffer) => {
        text += chunk.toString("latin1");
        const head = text.indexOf("\r\n\r\n");
        if (head === -1) return;
        const length = Number(/^content-length: *(\d+)/im.exec(text)?.[1] ?? 0);
        if (text.length < head + 4 + length) return;
        const status = text.slice(9, 12);
        statuses[status] = (statuses[status] ?? 0) + 1;
        text = "";
        totals.acked++;
        latencies.add(nowMs() - sentAt);
        if (stopping) return;
        if (rate === undefined) send();
        else free.push(send);
      });
      socket.on("error", () => undefined);
      socket.once("close", () => totals.closed++);
      if (rate === undefined) send();
      else free.push(send);
      return socket;
    }

    const sockets = await Promise.all(Array.from({ length: connections }, open));
    const startedAt = nowMs();
    let offered = 0;
    const timer =
      rate === undefined
        ? undefined
        : setInterval(() => {
            const due = Math.floor(((nowMs() - startedAt) * rate) / 1000);
            for (; offered < due; offered++) {
              const send = free.shift();
              if (send) send();
              else totals.skipped++;
            }
          }, 5);
    const read = () => ({ ...totals, statuses: { ...statuses }, latencies: latencies.read() });
    return {
      read,
      async stop() {
        stopping = true;
        clearInterval(timer);
        const until = nowMs() + 20_000;
        while (totals.acked < totals.sent && totals.closed === 0 && nowMs() < until) {
          await new Promise((resolve) => setTimeout(resolve, 20));
        }
        for (const socket of sockets) socket.resetAndDestroy();
        return read();
      },
    };
  },
};
