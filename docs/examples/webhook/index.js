// @ts-check
import { createHash, timingSafeEqual } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:http";

/**
 * @typedef {{ readonly path: string, readonly topic: string, readonly proxy: string, readonly qos: 0 | 1 }} Hook
 * @typedef {{ readonly host: string, readonly port: number, readonly token: string, readonly maxBodyBytes: number,
 *   readonly hooks: readonly Hook[] }} Options
 * @typedef {import("node:http").RequestListener} Listener
 *
 * A socket, and who answers behind it: the first of them, until it leaves.
 * @typedef {{ readonly server: import("node:http").Server, readonly tenants: Listener[] }} Door
 */

/** @type {import("@sluice/kernel").ServiceKind<Options>} */
const kind = {
  kind: "Webhook",
  create(options, host) {
    const address = `${options.host}:${options.port}`;
    const hooks = new Map(options.hooks.map((hook) => [hook.path, hook]));
    /** @type {Door | undefined} */
    let door;

    /** @param {import("node:http").IncomingMessage} request @param {import("node:http").ServerResponse} response */
    async function serve(request, response) {
      const hook = hooks.get(request.url ?? "");
      if (!hook) return reply(response, 404, { error: "no such hook" });
      if (request.method !== "POST") return reply(response, 405, { error: "POST it" });
      if (!isSame(request.headers.authorization ?? "", `Bearer ${options.token}`)) {
        return reply(response, 401, { error: "wrong token" });
      }
      const payload = await readBody(request, options.maxBodyBytes);
      if (!payload) return reply(response, 413, { error: `more than ${options.maxBodyBytes} bytes` });
      const { proxy, topic, qos } = hook;
      const { matched } = await host.publish(proxy, { topic, payload, qos, retain: false });
      reply(response, 200, { matched });
    }

    /** @type {Listener} */
    function answer(request, response) {
      serve(request, response).catch((error) => {
        host.log.error({ error: error.message }, "A hook failed");
        reply(response, 503, { error: "try again later" });
      });
    }

    const service = {
      address,
      door: () => door,
      // A config change builds the next service while this one listens. At the same address it moves in behind the same
      // socket, and answers once the one before it has been stopped; if the change is given up, it moves out again.
      /** @param {any} previous of the same kind, if perhaps of another version of this file */
      adopt(previous) {
        door = previous.address === address ? previous.door() : undefined;
        door?.tenants.push(answer);
      },
      async start() {
        if (door) return;
        const tenants = [answer];
        const server = createServer((request, response) => tenants[0]?.(request, response));
        server.listen(options.port, options.host);
        await once(server, "listening");
        door = { server, tenants };
      },
      async stop() {
        if (!door) return;
        const { server, tenants } = door;
        door = undefined;
        tenants.splice(tenants.indexOf(answer), 1);
        if (tenants.length > 0) return;
        const closed = once(server, "close");
        server.close();
        server.closeIdleConnections();
        await closed;
      },
      health() {
        const bound = door?.server.address();
        return bound && typeof bound === "object"
          ? { ok: true, detail: `http://${options.host}:${bound.port}` }
          : { ok: false, detail: "not listening" };
      },
    };
    return service;
  },
};
export default kind;

/** @param {import("node:http").ServerResponse} response @param {number} status @param {object} body */
function reply(response, status, body) {
  if (response.headersSent) return;
  // What has not been read of the request is not worth reading.
  response.writeHead(status, {
    "content-type": "application/json",
    ...(status === 200 ? {} : { connection: "close" }),
  });
  response.end(`${JSON.stringify(body)}\n`);
}

/** In a time that tells nothing of where they differ. @param {string} a @param {string} b */
function isSame(a, b) {
  const [left, right] = [a, b].map((each) => createHash("sha256").update(each).digest());
  return timingSafeEqual(/** @type {Buffer} */ (left), /** @type {Buffer} */ (right));
}

/** @param {AsyncIterable<Buffer>} request @param {number} maxBytes @returns {Promise<Buffer | undefined>} undefined where it is longer */
async function readBody(request, maxBytes) {
  const chunks = [];
  let bytes = 0;
  for await (const chunk of request) {
    bytes += chunk.length;
    if (bytes > maxBytes) return undefined;
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}
