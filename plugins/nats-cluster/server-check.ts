/** Whether the NATS servers are what the promises need. */
import type { Inbox } from "./inbox.ts";

export interface ServerCheck {
  readonly problem?: string;
  readonly warning?: string;
  /** It takes several writes as one, as far as that was tested. */
  readonly takesBatches?: true;
}

/** What is too old to work with, and what works but is slower, or less well proven, than what was measured. */
export function checkServer(version: string): ServerCheck {
  const [major = 0, minor = 0] = version.split(".").map(Number);
  const isAtLeast = (wanted: number): boolean => major > 2 || (major === 2 && minor >= wanted);
  if (!isAtLeast(11)) {
    return {
      problem: `the NATS server is ${version}, and 2.11 is the oldest that can be used: upgrade it to 2.15 or later`,
    };
  }
  if (isAtLeast(15)) return { takesBatches: true };
  return {
    warning: `The NATS server is ${version}: before 2.15 it writes some ten times fewer messages a second, and nothing was tested with it`,
  };
}

/**
 * A warning; undefined = every server that could be asked writes to disk before it confirms. Only an account that may see
 * the system's answers; most can't, and are told what to look at.
 */
export async function findSyncProblem(inbox: Inbox, timeoutMs: number): Promise<string | undefined> {
  const advice =
    "set `jetstream { sync_interval: always }` in each NATS server's config, or the loss of power can take acknowledged messages";
  try {
    const answer = await inbox.request("$SYS.REQ.SERVER.PING.JSZ", Buffer.from('{"config":true}'), timeoutMs);
    const { data } = answer.json<{ data?: { config?: { sync_always?: boolean } } }>();
    if (data?.config?.sync_always) return undefined;
    return `A NATS server does not write to disk before it confirms: ${advice}`;
  } catch {
    return `Whether NATS writes to disk before it confirms can't be seen from here: ${advice}`;
  }
}
