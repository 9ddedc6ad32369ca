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

/** New ones at each call, since a filter may change them. */
export function samplesOf(type: PacketType, signal: AbortSignal): FilterContext[] {
  switch (type) {
    case "Publish":
      return [
        ...payloads.map((payload) => createPublishContext({ payload, signal, username: "test" })),
        ...topics.map((topic) => createPublishContext({ topic, signal })),
        createPublishContext({ qos: 0, signal }),
        createPublishContext({ origin: "will", signal }),
      ];
    case "Connect":
      return [
        createConnectContext({ signal }),
        createConnectContext({ username: "test", password: "test", signal }),
        createConnectContext({ username: "test", signal }),
        createConnectContext({ username: "", password: "", clientId: "ü/#+", signal }),
        createConnectContext({ clientId: "x".repeat(65_535), clean: false, will, signal }),
      ];
    case "Subscribe":
      return [["a/b/c"], ["#"], ["+/+", "a/#", "a/b"], ["$share/group/a/+"], ["/"]].map((topicFilters) =>
        createSubscribeContext({ topicFilters, signal }),
      );
    case "Unsubscribe":
      return [["a/b/c"], ["#", "$share/group/a/+"]].map((topicFilters) =>
        createUnsubscribeContext({ topicFilters, signal }),
      );
    case "Disconnect":
      return [true, false].map((graceful) => createDisconnectContext({ graceful, signal }));
  }
}
