/** What a process and its children use, as Linux' /proc tells it. */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";

export interface Usage {
  /** CPU microseconds, user and system, since the process began. */
  readonly cpuUs: number;
  /** Bytes of memory that no file backs. */
  readonly memoryBytes: number;
}

/** Linux counts in hundredths of a second, whatever the kernel's own clock is. */
const usOfTick = 10_000;

/** Of the process and all below it; what has ended is left out. */
export function usageOf(pid: number): Usage {
  let cpuUs = 0;
  let memoryBytes = 0;
  for (const each of family(pid)) {
    try {
      const fields = statOf(each);
      cpuUs += (Number(fields[11]) + Number(fields[12])) * usOfTick;
      memoryBytes += Number(/^RssAnon:\s*(\d+) kB$/m.exec(readFileSync(`/proc/${each}/status`, "utf8"))?.[1]) * 1024;
    } catch {
      // It has ended meanwhile.
    }
  }
  return { cpuUs, memoryBytes };
}

/** Fields from the third on: the second, the name, may hold anything. */
function statOf(pid: number): string[] {
  const text = readFileSync(`/proc/${pid}/stat`, "utf8");
  return text.slice(text.lastIndexOf(")") + 2).split(" ");
}

function family(pid: number): number[] {
  const children = new Map<number, number[]>();
  for (const each of readdirSync("/proc").map(Number).filter(Boolean)) {
    try {
      const parent = Number(statOf(each)[1]);
      children.set(parent, [...(children.get(parent) ?? []), each]);
    } catch {
      // It has ended meanwhile.
    }
  }
  const found = [pid];
  for (const each of found) found.push(...(children.get(each) ?? []));
  return found;
}

/** The process of this machine that listens on a port; undefined where it is another's, or none. */
export function listenerOf(port: number): number | undefined {
  const hex = port.toString(16).toUpperCase().padStart(4, "0");
  const inodes = new Set(
    ["tcp", "tcp6"].flatMap((name) =>
      readFileSync(`/proc/net/${name}`, "utf8")
        .split("\n")
        .map((line) => line.trim().split(/\s+/))
        .filter((cells) => cells[1]?.endsWith(`:${hex}`) && cells[3] === "0A")
        .map((cells) => `socket:[${cells[9]}]`),
    ),
  );
  for (const pid of readdirSync("/proc").map(Number).filter(Boolean)) {
    try {
      const files = readdirSync(`/proc/${pid}/fd`);
      if (files.some((file) => inodes.has(readLink(`/proc/${pid}/fd/${file}`)))) return pid;
    } catch {
      // Not ours to look at.
    }
  }
  return undefined;
}

function readLink(path: string): string {
  try {
    return readlinkSync(path);
  } catch {
    return "";
  }
}
