/** The config of Easegress' MQTTProxy, which the gateway reads too. */
import type { Need } from "./server.ts";

/** Levels are gateway/gatewayID/device/status, as in the example configs. */
export const mappedTopic = "gateway/gate123/iphone/log";

/** @param more options of the MQTTProxy */
export function proxyDocuments({ setup, kafka, identity }: Need, port: number, more = ""): string[] {
  const proxy = `kind: MQTTProxy\nname: mqttproxy\nport: ${port}\n${more}`;
  if (setup === "broker") return [`${proxy}brokerMode: true\n`];
  if (setup === "tls") {
    const [cert, key] = [JSON.stringify(identity.cert), JSON.stringify(identity.key)];
    return [`${proxy}brokerMode: true\nuseTLS: true\ncertificate: [{ name: bench, cert: ${cert}, key: ${key} }]\n`];
  }
  const rules = "rules: [{ when: { packetType: Publish }, pipeline: publish }]\n";
  return [proxy + rules, publishPipeline(setup === "mapper", kafka!)];
}

/**
 * KafkaMQTT as it is without further options, which with ours is `acks: all`. Easegress wants `mqtt` to be there, and takes
 * the MQTT topic for Kafka's where that names no key: the load publishes to the topic of Kafka's name.
 */
function publishPipeline(isMapped: boolean, { brokers, topic }: NonNullable<Need["kafka"]>): string {
  const mapper = `
  - name: topic-mapper
    kind: TopicMapper
    setKV: { topic: kafka-topic, headers: kafka-headers }
    matchIndex: 0
    route: [{ name: gateway, matchExpr: "gate*" }, { name: direct, matchExpr: "dir*" }]
    policies:
      - name: direct
        topicIndex: 1
        route: [{ topic: other, exprs: [".*"] }]
        headers: { 0: direct, 1: device, 2: status }
      - name: gateway
        topicIndex: 2
        route: [{ topic: ${topic}, exprs: ["iphone", "xiaomi", "oppo", "pixel"] }, { topic: other, exprs: [".*"] }]
        headers: { 0: gateway, 1: gatewayID, 2: device, 3: status }`;
  return `kind: Pipeline
name: publish
protocol: MQTT
flow: [${isMapped ? "{ filter: topic-mapper }, " : ""}{ filter: sink }]
filters:${isMapped ? mapper : ""}
  - name: sink
    kind: KafkaMQTT
    backend: [${brokers.map((each) => JSON.stringify(each)).join(", ")}]
    topic: { default: ${isMapped ? "other" : topic} }
    mqtt: ${isMapped ? "{ topicKey: kafka-topic, headerKey: kafka-headers }" : "{}"}
`;
}
