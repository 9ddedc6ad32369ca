import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { ClusterMessage } from "../../kernel/cluster-engine.ts";
import { bodyVersion, decodeBody, encodeBody } from "../../plugins/nats-cluster/body.ts";
import { createRandom } from "../helpers/random.ts";

const least: ClusterMessage = {
  topic: "a/b",
  payload: Buffer.alloc(0),
  qos: 0,
  retain: false,
  expiresAt: 0,
  from: undefined,
  to: undefined,
  receipt: undefined,
  properties: undefined,
};
const most: ClusterMessage = {
  topic: "Gerät/1",
  payload: Buffer.from([0, 255, 10, 13]),
  qos: 2,
  retain: true,
  expiresAt: 1_800_000_000_123,
  from: "Gerät 😀",
  to: "für mich",
  receipt: "n1:17",
  properties: {
    payloadFormat: 1,
    messageExpiry: 60,
    contentType: "text/plain",
    responseTopic: "a/b",
    correlationData: Buffer.from([0, 1, 254]),
    userProperties: [
      ["a", "1"],
      ["a", "2"],
    ],
  },
};

describe("messages as bytes", () => {
  test("the least, the most, and what is between are read back", () => {
    const random = createRandom(3);
    assert.deepEqual(decodeBody(encodeBody(least), least.topic), least);
    assert.deepEqual(decodeBody(encodeBody(most), undefined), most);
    for (let n = 0; n < 2000; n++) {
      const body = Object.fromEntries(
        Object.keys(least).map((key) => [key, (random(2) === 0 ? least : most)[key as keyof ClusterMessage]]),
      ) as unknown as ClusterMessage;
      assert.deepEqual(decodeBody(encodeBody(body), body.topic), body);
    }
  });

  test("a form of a later release, and what is cut off, is an error", () => {
    const bytes = encodeBody(most);
    assert.throws(
      () => decodeBody(Buffer.concat([Buffer.from([bodyVersion + 1]), bytes.subarray(1)]), "a"),
      /this release reads/,
    );
    for (let length = 0; length < bytes.length - most.payload.length; length++) {
      assert.throws(() => decodeBody(bytes.subarray(0, length), "a"), Error, `${length} bytes`);
    }
  });
});
