/** KafkaMQTT against a broker that wants TLS, a client certificate and a login, and that forbids some topics. */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import kafkajs from "kafkajs";
import { generate } from "selfsigned";
import { eventually } from "../helpers/eventually.ts";
import { startTestGateway } from "../helpers/gateway.ts";
import { buildKafka, numbersOf, publish } from "../helpers/kafka-filter.ts";
import { openSourceBroker, sourceConfig } from "../helpers/kafka-source.ts";
import { startKafka } from "../helpers/kafka.ts";
import { toYaml } from "../helpers/probed-gateway.ts";
import { connectRaw } from "../helpers/raw-client.ts";

const certificate = await generate([{ name: "commonName", value: "kafka" }], {
  keyType: "ec",
  extensions: [
    { name: "basicConstraints", cA: true },
    { name: "subjectAltName", altNames: [{ type: 7, ip: "127.0.0.1" }] },
  ],
});
/** A value of several lines in a properties file. */
const inProperties = (pem: string) => pem.trim().replaceAll(/\r?\n/g, "\\n");
const modules = "org.apache.kafka.common.security";
const unsecured = `${modules}.oauthbearer.internals.unsecured.OAuthBearerUnsecuredValidatorCallbackHandler`;
const kafka = await startKafka({
  secondListener: (port) => port,
  config: {
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SECOND:SASL_SSL,CONTROLLER:PLAINTEXT",
    "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
    "listener.name.second.plain.sasl.jaas.config": `${modules}.plain.PlainLoginModule required user_gateway="s3cret";`,
    "listener.name.second.scram-sha-256.sasl.jaas.config": `${modules}.scram.ScramLoginModule required;`,
    "listener.name.second.scram-sha-512.sasl.jaas.config": `${modules}.scram.ScramLoginModule required;`,
    "listener.name.second.oauthbearer.sasl.jaas.config": `${modules}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";`,
    "listener.name.second.oauthbearer.sasl.server.callback.handler.class": unsecured,
    "listener.name.second.ssl.client.auth": "required",
    "ssl.keystore.type": "PEM",
    "ssl.keystore.certificate.chain": inProperties(certificate.cert),
    "ssl.keystore.key": inProperties(certificate.private),
    "ssl.truststore.type": "PEM",
    "ssl.truststore.certificates": inProperties(certificate.cert),
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users": "User:ANONYMOUS",
    "allow.everyone.if.no.acl.found": "true",
  },
});
const options = { skip: kafka ? false : "no Kafka", timeout: 60_000 };
after(() => kafka?.stop());

before(async () => {
  const addUser = async (name: string, mechanism: string) => {
    const args = [
      "--alter",
      "--add-config",
      `${mechanism}=[iterations=4096,password=s3cret]`,
      "--entity-type",
      "users",
    ];
    await kafka?.tool("kafka.admin.ConfigCommand", [...args, "--entity-name", name]);
  };
  await Promise.all([addUser("gateway", "SCRAM-SHA-256"), addUser("gateway-512", "SCRAM-SHA-512")]);
});

const ssl = { ca: certificate.cert, cert: certificate.cert, key: certificate.private };
const login = { username: "gateway", password: "s3cret" };
const plain = { mechanism: "plain", ...login };
const build = (config: object) => buildKafka({ backend: kafka?.second, topic: { default: "secured" }, ssl, ...config });

/** An unsigned JSON Web Token. */
function tokenFor(sub: string, seconds: number): string {
  const now = Math.floor(Date.now() / 1000);
  const encode = (part: object) => Buffer.from(JSON.stringify(part)).toString("base64url");
  return `${encode({ alg: "none" })}.${encode({ sub, iat: now, exp: now + seconds })}.`;
}

test("records arrive over TLS with a client certificate and each mechanism", options, async () => {
  const grants: { authorization: string | undefined; body: string }[] = [];
  const server = createServer((request, response) => {
    let body = "";
    request.on("data", (chunk) => (body += String(chunk)));
    request.on("end", () => {
      grants.push({ authorization: request.headers.authorization, body });
      response.end(JSON.stringify({ access_token: tokenFor("gateway", 300), expires_in: 300 }));
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  assert.ok(address !== null && typeof address === "object");
  const endpoint = { tokenEndpoint: `http://127.0.0.1:${address.port}/token`, clientId: "id", clientSecret: "p:w" };
  try {
    for (const sasl of [
      plain,
      { mechanism: "scram-sha-256", ...login },
      { mechanism: "scram-sha-512", ...login, username: "gateway-512" },
      { mechanism: "oauthbearer", token: tokenFor("gateway", 300) },
      { mechanism: "oauthbearer", ...endpoint, scope: "kafka" },
    ]) {
      const topic = `secured-${randomUUID()}`;
      await using built = await build({ sasl, topic: { default: topic } });
      assert.equal(await publish(built, "1"), undefined, JSON.stringify(sasl));
      assert.deepEqual(numbersOf((await kafka?.consume(topic)) ?? []), [1]);
    }
  } finally {
    server.closeAllConnections();
    server.close();
  }
  assert.deepEqual(grants, [
    {
      authorization: `Basic ${Buffer.from("id:p%3Aw").toString("base64")}`,
      body: "grant_type=client_credentials&scope=kafka",
    },
  ]);
});

test("a gateway takes CA, certificate, key and password from files", options, async (t) => {
  const folder = await mkdtemp(join(tmpdir(), "sluice-secure-"));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const files = { "ca.pem": certificate.cert, "client.pem": certificate.cert, "client.key": certificate.private };
  for (const [name, text] of Object.entries({ ...files, password: "s3cret\n" }))
    await writeFile(join(folder, name), text);
  const topic = `files-${randomUUID()}`;
  const filter = (tls: object) => ({
    name: "kafka",
    kind: "KafkaMQTT",
    backend: kafka?.second,
    topic: { default: topic },
    ssl: tls,
    sasl: { mechanism: "plain", username: "gateway", password: "${file:password}" },
  });
  const config = (tls: object): string =>
    toYaml([
      {
        kind: "MQTTProxy",
        name: "mqttproxy",
        host: "127.0.0.1",
        port: 0,
        rules: [{ when: { packetType: "Publish" }, pipeline: "publish" }],
      },
      { kind: "Pipeline", name: "publish", filters: [filter(tls)] },
    ]);
  const files1 = { ca: "${file:ca.pem}", cert: "${file:client.pem}", key: "${file:client.key}" };
  const gateway = await startTestGateway(config(files1), { folder });
  t.after(() => gateway.stop());
  const client = await connectRaw(gateway.port(), "dev");
  await client.publish("a/b", "1");
  assert.deepEqual(numbersOf((await kafka?.consume(topic)) ?? []), [1]);
  const shown = JSON.stringify(gateway.gateway.host.config.documents());
  assert.ok(!/PRIVATE KEY|s3cret/.test(shown), "a secret of a file is shown");
  // A file that is missing changes nothing, and is named with its place.
  const { problems } = await gateway.reload(config({ ...files1, key: "${file:missing.key}" }));
  assert.match(
    problems.map(({ where, message }) => `${where}: ${message}`).join(),
    /^sluice\.yaml:\d+:\d+: \$\{file:missing\.key\} can't be read/,
  );
  await client.publish("a/b", "2");
  // Without its certificate the broker does not let it in.
  await gateway.reload(config({ ca: "${file:ca.pem}" }));
  await eventually(() => gateway.gateway.host.health().find(({ name }) => name === "publish/kafka")?.ok, false);
  await gateway.reload(config(files1));
  await client.publish("a/b", "3");
  assert.deepEqual(numbersOf((await kafka?.consume(topic)) ?? []), [1, 2, 3]);
});

test(
  "a wrong password, an unknown authority, no certificate or no token is told, without secrets",
  options,
  async () => {
    const noToken = { tokenEndpoint: "http://127.0.0.1:9/token", clientId: "id", clientSecret: "s3cret" };
    const cases: [object, RegExp][] = [
      [{ ssl, sasl: { ...plain, password: "wr0ng" } }, /PLAIN authentication failed/],
      [{ ssl, sasl: { mechanism: "scram-sha-256", ...login, password: "wr0ng" } }, /authentication failed/i],
      [{ ssl: true, sasl: plain }, /self-signed certificate/],
      [
        { ssl: { ca: certificate.cert }, sasl: plain },
        /certificate required|closed connection|bad certificate|handshake/i,
      ],
      [{ ssl, sasl: { mechanism: "oauthbearer", token: "n0nsense" } }, /OAUTHBEARER|invalid|closed connection/i],
      [{ ssl, sasl: { mechanism: "oauthbearer", ...noToken } }, /no token: /],
    ];
    for (const [config, expected] of cases) {
      await using built = await build(config);
      const { filter, host } = built;
      while (!host.logs.some((line) => line.level === "warn")) await sleep(20);
      assert.equal(filter.health?.().ok, false);
      assert.match(filter.health?.().detail ?? "", expected);
      assert.match(host.logs.find((line) => line.level === "warn")?.message ?? "", expected);
      const told = JSON.stringify([host.logs.filter(({ level }) => level !== "debug"), filter.health?.()]);
      assert.ok(!/wr0ng|s3cret|n0nsense/.test(told), told);
    }
  },
);

test(
  "KafkaSource reads over TLS with a client certificate and a login, and health tells of a wrong one",
  options,
  async (t) => {
    assert.ok(kafka);
    const topic = `secured-${randomUUID()}`;
    await kafka.createTopic(topic, 1);
    const broker = await openSourceBroker(kafka.brokers);
    t.after(() => broker.close());
    const source = { topics: [topic], group: "g", ssl, mqtt: { topic: "in/{{ key }}" } };
    const wrong = { mechanism: "scram-sha-256", ...login, password: "wrong" };
    const configOf = (sasl: object) => sourceConfig(kafka?.second ?? [], { ...source, sasl });
    const gateway = await startTestGateway(configOf(wrong));
    t.after(() => gateway.stop());
    const detail = () => gateway.gateway.host.health().find(({ name }) => name === "source")?.detail ?? "";
    await eventually(() => /^failing: .*[Aa]uthentication/.test(detail()), true, 20_000);
    await gateway.reload(configOf({ ...wrong, password: "s3cret" }));
    await broker.produce(topic, [{ key: "k", value: "1" }]);
    await eventually(() => broker.committed("g", topic), { 0: 1 }, 20_000);
    assert.ok(!gateway.logs.some((line) => JSON.stringify(line).includes("s3cret")));
  },
);

test("a topic that is forbidden waits, holds up no other, and is no outage", options, async () => {
  const [forbidden, free] = [`forbidden-${randomUUID()}`, `free-${randomUUID()}`];
  await kafka?.createTopic(forbidden);
  await kafka?.createTopic(free);
  const client = new kafkajs.Kafka({ brokers: kafka?.brokers ?? [], logLevel: kafkajs.logLevel.NOTHING });
  const admin = client.admin();
  await admin.connect();
  const rule = {
    resourceType: kafkajs.AclResourceTypes.TOPIC,
    resourceName: forbidden,
    resourcePatternType: kafkajs.ResourcePatternTypes.LITERAL,
    principal: "User:somebody",
    host: "*",
    operation: kafkajs.AclOperationTypes.ALL,
    permissionType: kafkajs.AclPermissionTypes.ALLOW,
  };
  await admin.createAcls({ acl: [rule] });
  try {
    await using built = await build({ sasl: plain, topic: { default: free }, mqtt: { topicKey: "topic" } });
    const send = (topic: string, payload: string) => publish(built, payload, { data: { topic } });
    assert.equal(await send(free, "0"), undefined);
    let isWaiting = true;
    const late = send(forbidden, "1").finally(() => (isWaiting = false));
    await eventually(async () => (await built.errors("unauthorized")) > 1, true);
    for (const payload of ["1", "2", "3"]) assert.equal(await send(free, payload), undefined);
    assert.equal(isWaiting, true);
    assert.equal(built.filter.health?.().ok, true);
    const lines = built.host.logs.filter(({ fields }) => fields["reason"] === "unauthorized");
    assert.equal(lines.length, 1, "told once");
    await admin.createAcls({ acl: [{ ...rule, principal: "User:gateway" }] });
    assert.equal(await late, undefined);
    assert.deepEqual(numbersOf((await kafka?.consume(forbidden)) ?? []), [1]);
  } finally {
    await admin.disconnect();
  }
});
