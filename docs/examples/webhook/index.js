// @ts-check
import { createHash, timingSafeEqual } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:http";

/**
 * @typedef {{ readonly path: string, readonly topic: string, readonly proxy: string, readonly qos: 0 | 1 }} Hook
 * @typedef {{ readonly host: string, readonly port: number, readonly token: string, readonly maxBodyBytes: number,
 *   readonly hooks: readonly Hook[] }} Options
 * @typedef {{ readonly server: import("node:http").Server, answer: import("node:http").RequestListener }} Door
 */

/** Of services that may pass their server on: where it is, and who gets it. @type {WeakMap<object, { address: string, heir?: (door: Door) => void }>} */
const running = new WeakMap();

/** @type {import("@sluice/kernel").ServiceKind<Options>} */
const kind = {
  kind: "Webhook",
  create(options, host) {
    const address = `${options.host}:${options.port}`;
    const hooks = new Map(options.hooks.map((hook) => [hook.path, hook]));
    /** @type {Door | undefined} */
    let door;
    /** @type {{ heir?: (door: Door) => void } | undefined} */
    let predecessor;

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

    /** @type {import("node:http").RequestListener} */
    function answer(request, response) {
      serve(request, response).catch((error) => {
        host.log.error({ error: error.message }, "A hook failed");
        reply(response, 503, { error: "try again later" });
      });
    }

    const service = {
      // A config change replaces a service while the old one still listens: one at the same address hands over its server.
      /** @param {object} previous */
      adopt(previous) {
        const old = running.get(previous);
        if (old?.address !== address) return;
        predecessor = old;
        old.heir = (/** @type {Door} */ taken) => {
          door = taken;
          taken.answer = answer;
        };
      },
      async start() {
        if (predecessor) return;
        const server = createServer((request, response) => mine.answer(request, response));
        /** @type {Door} */
        const mine = { server, answer };
        server.listen(options.port, options.host);
        await once(server, "listening");
        door = mine;
      },
      async stop() {
        // Given up before the handover: the predecessor keeps its server.
        if (predecessor && !door) delete predecessor.heir;
        const heir = running.get(service)?.heir;
        if (!door) return;
        if (heir) return heir(door);
        const closed = once(door.server, "close");
        door.server.close();
        door.server.closeIdleConnections();
        await closed;
      },
      health() {
        const bound = door?.server.address();
        return {
          ok: true,
          detail: bound && typeof bound === "object" ? `http://${options.host}:${bound.port}` : address,
        };
      },
    };
    running.set(service, { address });
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
