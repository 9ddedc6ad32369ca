/** How a packet's run through a pipeline ended; docs/configuration.md says what each means for the client. */
import type { Reason } from "./plugin.ts";

export type Outcome =
  | { readonly kind: "passed" }
  | { readonly kind: "dropped" }
  | { readonly kind: "rejected"; readonly reason: Reason; readonly text?: string }
  | { readonly kind: "disconnected"; readonly reason: Reason; readonly text?: string }
  /** A declared result without a jumpIf; `verdict` where the kind lists it in `discards`. */
  | { readonly kind: "unhandled"; readonly result: string; readonly verdict: boolean }
  | { readonly kind: "fault"; readonly error: unknown };

/** What passed and what is a verdict is acked, since no retry would change it; a fault never is. */
export function isFinal(outcome: Outcome): boolean {
  if (outcome.kind === "unhandled") return outcome.verdict;
  return outcome.kind !== "fault" && outcome.kind !== "disconnected";
}

/** For counters. */
export function nameOf(outcome: Outcome): string {
  return outcome.kind === "unhandled" ? outcome.result : outcome.kind;
}

/** Why a packet that did not pass is refused. */
export function reasonOf(outcome: Outcome): Reason {
  switch (outcome.kind) {
    case "rejected":
    case "disconnected":
      return outcome.reason;
    case "fault":
      return "serverUnavailable";
    default:
      return "notAuthorized";
  }
}

/** The filter's own words, where it has some. */
export function textOf(outcome: Outcome): string | undefined {
  return outcome.kind === "rejected" || outcome.kind === "disconnected" ? outcome.text : undefined;
}
