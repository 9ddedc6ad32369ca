/** A real redis-server on loopback, its data in memory. */
import assert from "node:assert/strict";
import { spawn, spawnSync, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { connect } from "node:net";
import type { TestContext } from "node:test";
import { eventually } from "./eventually.ts";
import { findFreePort } from "./free-port.ts";

export interface Redis {
  readonly url: string;
  /** Without a goodbye. */
  kill(): Promise<void>;
  /** On the same port, empty. */
  restart(): Promise<void>;
}

/** False, and says so, where there is none on this machine; fails there with CI=true. */
export function hasRedis(t: TestContext): boolean {
  if (spawnSync("redis-server", ["--version"]).status === 0) return true;
  assert.notEqual(process.env["CI"], "true", "redis-server: not found");
  t.skip("redis-server: not found");
  return false;
}

/** Ends with the test. */
export async function startRedis(t: TestContext): Promise<Redis> {
  const port = await findFreePort();
  let child: ChildProcess | undefined;

  async function start(): Promise<void> {
    const args = ["--port", String(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
    child = spawn("redis-server", args, { stdio: "ignore" });
    await eventually(() => listens(port), true);
  }

  async function kill(): Promise<void> {
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const exited = once(child, "exit");
    child.kill("SIGKILL");
    await exited;
  }

  t.after(kill);
  await start();
  return { url: `redis://127.0.0.1:${port}`, kill, restart: start };
}

function listens(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1");
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => resolve(false));
  });
}
