/** KafkaMQTT against a broker that wants TLS and a password. */
import assert from "node:assert/strict";
import { after, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Kafka as KafkaJs, logLevel } from "kafkajs";
import { generate } from "selfsigned";
import kind from "../../plugins/kafka/index.ts";
import { createPublishContext, createFilterMaker, createTestHost } from "@sluice/testkit";
import { startKafka } from "../helpers/kafka.ts";

const maker = createFilterMaker(kind, new URL("../../plugins/kafka/schema.json", import.meta.url));
const certificate = await generate([{ name: "commonName", value: "kafka" }], {
  keyType: "ec",
  extensions: [
    { name: "basicConstraints", cA: true },
    { name: "subjectAltName", altNames: [{ type: 7, ip: "127.0.0.1" }] },
  ],
});
/** A value of several lines in a properties file. */
const inProperties = (pem: string) => pem.trim().replaceAll(/\r?\n/g, "\\n");
const login = 'org.apache.kafka.common.security.plain.PlainLoginModule required username="broker" password="b"';
const kafka = await startKafka({
  config: {
    "listener.security.protocol.map": "PLAINTEXT:SASL_SSL,CONTROLLER:PLAINTEXT",
    "sasl.enabled.mechanisms": "PLAIN",
    "sasl.mechanism.inter.broker.protocol": "PLAIN",
    "listener.name.plaintext.plain.sasl.jaas.config": `${login} user_broker="b" user_gateway="s3cret";`,
    "ssl.keystore.type": "PEM",
    "ssl.keystore.certificate.chain": inProperties(certificate.cert),
    "ssl.keystore.key": inProperties(certificate.private),
    "ssl.truststore.type": "PEM",
    "ssl.truststore.certificates": inProperties(certificate.cert),
  },
});
const options = { skip: kafka ? false : "no Kafka", timeout: 60_000 };
after(() => kafka?.stop());

const ssl = { ca: certificate.cert };
const sasl = { mechanism: "plain" as const, username: "gateway", password: "s3cret" };

async function build(config: object) {
  const host = createTestHost({ name: "publish/kafka" });
  const filter = await maker.build({ backend: kafka?.brokers, topic: { default: "secured" }, ...config }, host.host);
  return {
    filter,
    host,
    async [Symbol.asyncDispose]() {
      await filter.close?.();
      host.close();
    },
  };
}

test("records arrive over TLS with SASL PLAIN", options, async () => {
  await using built = await build({ ssl, sasl });
  assert.equal(await built.filter.handle(createPublishContext()), undefined);
  const client = new KafkaJs({ brokers: kafka?.brokers ?? [], ssl, sasl: { ...sasl }, logLevel: logLevel.NOTHING });
  const admin = client.admin();
  await admin.connect();
  const offsets = await admin.fetchTopicOffsets("secured");
  await admin.disconnect();
  assert.equal(
    offsets.reduce((sum, each) => sum + Number(each.high), 0),
    1,
  );
});

test("a wrong password or an unknown authority is told by health and log, without the password", options, async () => {
  const cases: [object, RegExp][] = [
    [{ ssl, sasl: { ...sasl, password: "wr0ng" } }, /PLAIN authentication failed/],
    [{ ssl: true, sasl }, /self-signed certificate/],
  ];
  for (const [config, expected] of cases) {
    await using built = await build(config);
    const { filter, host } = built;
    while (!host.logs.some((line) => line.level === "warn")) await sleep(20);
    assert.equal(filter.health?.().ok, false);
    assert.match(filter.health?.().detail ?? "", expected);
    assert.match(host.logs.find((line) => line.level === "warn")?.message ?? "", expected);
    assert.ok(!/wr0ng|s3cret/.test(JSON.stringify([host.logs, filter.health?.()])));
  }
});
