/** MQTT over WebSocket [MQTT-6]: an HTTP upgrade, then one stream of bytes in binary messages. */
import { createServer, type IncomingMessage, STATUS_CODES } from "node:http";
import type { Socket } from "node:net";
import { Duplex } from "node:stream";
import { type WebSocket, WebSocketServer } from "ws";
import type { Code } from "./errors.ts";
import type { WebSocketSpec } from "./spec.ts";

/** Upgrades sockets by options that stay the same: made before a change, used after it. */
export interface WebSocketGate {
  /** @param failed the socket has been answered, and ends by itself */
  upgrade(socket: Socket, done: (stream: Duplex) => void, failed: (error: Error) => void): void;
}

export interface WebSocketOptions extends WebSocketSpec {
  /** A message is refused by its head, before any of it is kept. It may hold several packets, or a part of one. */
  readonly maxMessageBytes: number;
  /** A connection is closed for what a message is. */
  readonly onRefused: (code: Code, why: string) => void;
}

interface Upgrade {
  readonly done: (stream: Duplex) => void;
  readonly failed: (error: Error) => void;
}

/** In the order of preference: the second is what clients of MQTT 3.1 ask for. */
const subprotocols = ["mqtt", "mqttv3.1"];

/** How long a peer may take to answer a close frame. */
const closeTimeoutMs = 2000;

const maxHeaderBytes = 8192;

export function createWebSocketGate(o: WebSocketOptions): WebSocketGate {
  const upgrades = new Map<unknown, Upgrade>();
  // Never bound: sockets of the listener are handed to it.
  const http = createServer({ maxHeaderSize: maxHeaderBytes });
  const options = {
    noServer: true,
    clientTracking: false,
    perMessageDeflate: false,
    maxPayload: o.maxMessageBytes,
    closeTimeout: closeTimeoutMs,
    // The server must answer with the subprotocol that it has chosen [MQTT-6.0.0-4].
    handleProtocols: (offered: Set<string>) => subprotocols.find((each) => offered.has(each)) ?? false,
  };
  const server = new WebSocketServer(options);

  function fail(socket: unknown, why: string): void {
    const waiting = upgrades.get(socket);
    upgrades.delete(socket);
    waiting?.failed(new Error(why));
  }

  http.on("upgrade", (request, socket, head) => {
    const refusal = refusalOf(request, o);
    if (refusal) {
      const body = `${refusal.why}\n`;
      socket.end(
        `HTTP/1.1 ${refusal.status} ${STATUS_CODES[refusal.status]}\r\nConnection: close\r\n` +
          `Content-Type: text/plain\r\nContent-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
      );
      fail(socket, refusal.why);
      return;
    }
    server.handleUpgrade(request, socket, head, (webSocket) => {
      const waiting = upgrades.get(socket);
      upgrades.delete(socket);
      if (waiting) waiting.done(toStream(webSocket, o.onRefused));
      else webSocket.terminate();
    });
  });
  http.on("request", (_request, response) => {
    const { socket } = response;
    response.writeHead(426, { Connection: "close", Upgrade: "websocket", "Content-Type": "text/plain" });
    response.end("this port speaks MQTT over WebSocket\n");
    fail(socket, "it does not ask for a WebSocket");
  });
  http.on("clientError", (error, socket) => {
    if (socket.writable) socket.end("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
    fail(socket, error.message);
  });

  return {
    upgrade(socket, done, failed) {
      const onClose = (): void => fail(socket, "closed before it asked for a WebSocket");
      upgrades.set(socket, {
        done(stream) {
          socket.off("close", onClose);
          done(stream);
        },
        failed,
      });
      socket.once("close", onClose);
      http.emit("connection", socket);
      // A socket whose PROXY header was read is paused.
      socket.resume();
    },
  };
}

function refusalOf(
  request: IncomingMessage,
  { path, origins }: WebSocketSpec,
): { status: number; why: string } | undefined {
  const { origin } = request.headers;
  // A page brings along what its user's browser has: the certificate, and the place in the network.
  if (origin !== undefined && origins.length > 0 && !origins.includes(origin.toLowerCase()))
    return { status: 403, why: "pages of this origin may not connect" };
  if (request.url?.split("?", 1)[0] !== path) return { status: 404, why: "there is nothing at this path" };
  const offered = request.headers["sec-websocket-protocol"]?.split(",").map((each) => each.trim()) ?? [];
  // The client must offer it [MQTT-6.0.0-3].
  if (offered.some((each) => subprotocols.includes(each))) return undefined;
  return { status: 400, why: "it does not offer the subprotocol mqtt" };
}

/** Binary messages as one stream of bytes, whatever their bounds [MQTT-6.0.0-2]. */
function toStream(webSocket: WebSocket, onRefused: WebSocketOptions["onRefused"]): Duplex {
  let isOver = false;
  const stream = new Duplex({
    allowHalfOpen: false,
    read: () => webSocket.resume(),
    // Done when the socket has taken it: what a slow peer leaves waits in the stream, whose length its owner watches.
    write: (chunk: Buffer, _encoding, done) => webSocket.send(chunk, done),
    writev: (chunks, done) => webSocket.send(Buffer.concat(chunks.map(({ chunk }) => chunk as Buffer)), done),
    final(done) {
      if (webSocket.readyState === webSocket.CLOSED) {
        done();
        return;
      }
      webSocket.once("close", () => done());
      webSocket.close(1000);
    },
    destroy(error, done) {
      isOver = true;
      webSocket.terminate();
      done(error);
    },
  });

  /** Nothing more is read; the close frame is under way. */
  function end(): void {
    if (isOver) return;
    isOver = true;
    // What comes now is thrown away, or the peer's close frame would never be seen.
    webSocket.resume();
    stream.push(null);
  }

  webSocket.on("message", (data, isBinary) => {
    if (isOver) return;
    // [MQTT-6.0.0-1]
    if (!isBinary) {
      onRefused("MALFORMED_PACKET", "a WebSocket message is text");
      webSocket.close(1003, "MQTT is sent in binary messages");
      end();
    } else if (!stream.push(data)) {
      webSocket.pause();
    }
  });
  webSocket.on("error", (error: Error & { code?: string }) => {
    // The library has sent the close frame that tells the peer why.
    if (!isOver && error.code?.startsWith("WS_ERR")) {
      const isTooLarge = error.code === "WS_ERR_UNSUPPORTED_MESSAGE_LENGTH";
      onRefused(isTooLarge ? "PACKET_TOO_LARGE" : "MALFORMED_PACKET", error.message);
    }
    end();
  });
  webSocket.on("close", end);
  return stream;
}
