/** Packets as devices send them, the odd ones included. */
import type { FilterContext, PacketType } from "@sluice/kernel";
import {
  createConnectContext,
  createDisconnectContext,
  createPublishContext,
  createSubscribeContext,
  createUnsubscribeContext,
} from "./context.ts";

const topics = ["a", "a/b/c", "/", "a//b", "sensors/kitchen", `${"level/".repeat(200)}end`, "täglich/ü"];

const payloads: readonly Buffer[] = [
  "hello",
  "",
  '{"celsius":21}',
  '{"__proto__":{"polluted":true},"a":{"b":[1,null,"x"]}}',
  "{}",
  "[1]",
  "null",
  "21",
  '{"celsius":',
  '"text"',
  Buffer.from([0xff, 0xfe, 0x00, 0x80]),
  Buffer.alloc(65_536, "x"),
].map((each) => Buffer.from(each));

const will = { topic: "a/last", payload: Buffer.from("bye"), qos: 1, retain: false } as const;

/** What is common to them: the client, and the run's deadline. */
interface Given {
  readonly clientId: string;
  readonly signal: AbortSignal;
}

/** Each makes a new one, since a filter may change it. */
export function samplesOf(type: PacketType): ((given: Given) => FilterContext)[] {
  switch (type) {
    case "Publish":
      return [
        ...payloads.map((payload) => (given: Given) => createPublishContext({ ...given, payload, username: "test" })),
        ...topics.map((topic) => (given: Given) => createPublishContext({ ...given, topic })),
        (given) => createPublishContext({ ...given, qos: 0 }),
        (given) => createPublishContext({ ...given, origin: "will" }),
      ];
    case "Connect":
      return [
        createConnectContext,
        (given) => createConnectContext({ ...given, username: "test", password: "test" }),
        (given) => createConnectContext({ ...given, username: "test" }),
        (given) => createConnectContext({ ...given, username: "", password: "", clientId: "ü/#+" }),
        (given) => createConnectContext({ ...given, clientId: "x".repeat(65_535), clean: false, will }),
      ];
    case "Subscribe":
      return [["a/b/c"], ["#"], ["+/+", "a/#", "a/b"], ["$share/group/a/+"], ["/"]].map(
        (topicFilters) => (given) => createSubscribeContext({ ...given, topicFilters }),
      );
    case "Unsubscribe":
      return [["a/b/c"], ["#", "$share/group/a/+"]].map(
        (topicFilters) => (given) => createUnsubscribeContext({ ...given, topicFilters }),
      );
    case "Disconnect":
      return [true, false].map((graceful) => (given) => createDisconnectContext({ ...given, graceful }));
  }
}
