/** `sluice run` follows its config's files, whatever changes them, and takes no half of one for a whole. */
import assert from "node:assert/strict";
import { mkdir, mkdtemp, open, readFile, rename, rm, symlink, utimes, writeFile } from "node:fs/promises";
import { once } from "node:events";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect as connectTls } from "node:tls";
import { test, type TestContext } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import mqtt, { type MqttClient } from "mqtt";
import { generate } from "selfsigned";
import { eventually } from "../helpers/eventually.ts";
import { spawnGateway, type LogLine, type SpawnedGateway } from "../helpers/spawned-gateway.ts";

const api = "kind: AdminAPI\nname: admin-api\nport: 0\n";

/** @param limit what the tests change; two configs differ in nothing else */
function proxy(limit: number, more = ""): string {
  return `kind: MQTTProxy\nname: mqttproxy\nhost: 127.0.0.1\nport: 0\nmaxAllowedConnection: ${limit}\n${more}`;
}

const config = (limit: number, more = ""): string => `${proxy(limit, more)}---\n${api}`;

async function temporary(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "sluice-watch-"));
  t.after(() => rm(folder, { recursive: true }));
  return folder;
}

interface Setup {
  readonly gateway: SpawnedGateway;
  readonly client: MqttClient;
}

/** A gateway and a client that must stay connected to the end of the test. */
async function start(t: TestContext, path: string, args: readonly string[] = []): Promise<Setup> {
  const gateway = await spawnGateway(path, args);
  const client = await connect(gateway);
  let closed = 0;
  client.on("close", () => closed++);
  t.after(async () => {
    const closedBefore = closed;
    await client.endAsync(true);
    await gateway.stop();
    assert.equal(closedBefore, 0, "the client was disconnected");
  });
  return { gateway, client };
}

function connect({ port }: SpawnedGateway, protocol = "mqtt"): Promise<MqttClient> {
  return mqtt.connectAsync(`${protocol}://127.0.0.1:${port}`, { reconnectPeriod: 0, rejectUnauthorized: false });
}

/** Does it, and returns what the reload that it leads to has changed. */
async function changedBy(gateway: SpawnedGateway, change: () => Promise<unknown>): Promise<LogLine> {
  const from = gateway.logs.length;
  await change();
  return gateway.reloaded(from);
}

async function limitRunning({ api: url }: SpawnedGateway): Promise<number> {
  const text = await (await fetch(`${url}/apis/v2/objects/mqttproxy`)).text();
  return Number(/maxAllowedConnection"?: ?(\d+)/.exec(text)?.[1]);
}

const changedLimit = { by: "file", changed: ["change MQTTProxy mqttproxy (maxAllowedConnection)"] };

function assertChanged({ msg, by, changed }: LogLine, expected: object = changedLimit): void {
  assert.equal(msg, "The config has changed");
  assert.deepEqual({ by, changed }, expected);
}

test("a file written in place, and one renamed over it as editors do", async (t) => {
  const file = join(await temporary(t), "sluice.yaml");
  await writeFile(file, config(100));
  const { gateway } = await start(t, file);
  assertChanged(await changedBy(gateway, () => writeFile(file, config(101))));
  for (const limit of [102, 103, 104]) {
    const line = await changedBy(gateway, async () => {
      await writeFile(`${file}~`, config(limit));
      await rename(`${file}~`, file);
    });
    assertChanged(line);
  }
  // Moved away and written anew, as vim does.
  const line = await changedBy(gateway, async () => {
    await rename(file, `${file}~`);
    await writeFile(file, config(105));
  });
  assertChanged(line);
  assert.equal(await gateway.metric("sluice_config_reloads_total"), 6);
});

test("half a file is neither applied nor reported while it is being written; one that stays is, once", async (t) => {
  const file = join(await temporary(t), "sluice.yaml");
  await writeFile(file, config(100));
  const { gateway } = await start(t, file);
  // Every beginning of it is another config, or none: 20 pieces, each well within the quiet period of the last.
  const text = config(101, "brokerMode: true\nretryInterval: 7\n");
  const line = await changedBy(gateway, async () => {
    const handle = await open(file, "w");
    const step = Math.ceil(text.length / 20);
    for (let at = 0; at < text.length; at += step) {
      await handle.write(text.slice(at, at + step));
      await sleep(40);
    }
    await handle.close();
  });
  assertChanged(line, {
    by: "file",
    changed: ["change MQTTProxy mqttproxy (brokerMode, maxAllowedConnection, retryInterval)"],
  });
  assert.equal(await gateway.metric("sluice_config_reloads_total"), 2);

  const failed = await changedBy(gateway, () => writeFile(file, "kind: MQTTProxy\nname: mqttproxy\nport: [0"));
  assert.equal(failed.msg, "The config was not changed");
  assert.equal(await gateway.metric("sluice_config_last_reload_successful"), 0);
  const count = gateway.logs.length;
  assertChanged(await changedBy(gateway, () => writeFile(file, config(102))), {
    by: "file",
    changed: ["change MQTTProxy mqttproxy (brokerMode, maxAllowedConnection, retryInterval)"],
  });
  assert.equal(gateway.logs.slice(count).filter(({ level }) => level >= 50).length, 0, "reported once");
  assert.equal(await gateway.metric("sluice_config_last_reload_successful"), 1);
});

test("a Kubernetes ConfigMap, whose ..data link is moved at once", async (t) => {
  const folder = await temporary(t);
  const version = async (name: string, limit: number): Promise<void> => {
    await mkdir(join(folder, name));
    await writeFile(join(folder, name, "sluice.yaml"), config(limit));
    await symlink(name, join(folder, "..data_tmp"));
    await rename(join(folder, "..data_tmp"), join(folder, "..data"));
  };
  await version("..1", 100);
  await symlink("..data/sluice.yaml", join(folder, "sluice.yaml"));
  for (const path of [join(folder, "sluice.yaml"), folder]) {
    await t.test(path === folder ? "named by its folder" : "named by its file", async (part) => {
      const { gateway } = await start(part, path);
      for (const n of [2, 3]) {
        const name = `..${path === folder ? "folder" : "file"}${n}`;
        assertChanged(await changedBy(gateway, () => version(name, 100 + n + (path === folder ? 10 : 0))));
      }
    });
  }
});

test("a folder of files: one changed, one added, one removed", async (t) => {
  const folder = await temporary(t);
  await writeFile(join(folder, "api.yaml"), api);
  await writeFile(join(folder, "proxy.yaml"), proxy(100));
  const { gateway } = await start(t, folder);
  assertChanged(await changedBy(gateway, () => writeFile(join(folder, "proxy.yaml"), proxy(101))));
  const added = await changedBy(gateway, () =>
    writeFile(
      join(folder, "sink.yaml"),
      "kind: Pipeline\nname: sink\nfilters: [{ name: control, kind: ConnectControl }]\n",
    ),
  );
  assertChanged(added, { by: "file", changed: ["build ConnectControl sink/control", "build Pipeline sink"] });
  // A file that is none of its config's.
  await writeFile(join(folder, "notes.txt"), "nothing");
  const removed = await changedBy(gateway, () => rm(join(folder, "sink.yaml")));
  assertChanged(removed, { by: "file", changed: ["drop ConnectControl sink/control", "drop Pipeline sink"] });
  assert.equal(await gateway.metric("sluice_config_reloads_total"), 4);
});

test("a secret in a file of its own", async (t) => {
  const folder = await temporary(t);
  const file = join(folder, "sluice.yaml");
  const hash = (digit: string): string => digit.repeat(64);
  await writeFile(join(folder, "secret"), hash("a"));
  await writeFile(
    file,
    `${config(100)}---\nkind: Pipeline\nname: auth\nfilters:\n- name: auth\n  kind: MQTTClientAuth\n  salt: salt\n  auth: [{ username: u, saltedSha256Pass: "\${file:secret}" }]\n`,
  );
  const { gateway } = await start(t, file);
  const line = await changedBy(gateway, () => writeFile(join(folder, "secret"), hash("b")));
  assertChanged(line, { by: "file", changed: ["change MQTTClientAuth auth/auth (auth)"] });
  assert.ok(!JSON.stringify(gateway.logs).includes(hash("b")), "a secret was logged");
  const failed = await changedBy(gateway, () => rm(join(folder, "secret")));
  assert.equal(failed.msg, "The config was not changed");
  // It comes back as it was: the config on disk is the running one again.
  const back = await changedBy(gateway, () => writeFile(join(folder, "secret"), hash("b")));
  assert.equal(back.msg, "The config has not changed");
});

test("certificates renewed on disk: new handshakes get the new one; a key that doesn't fit waits to be mended", async (t) => {
  const folder = await temporary(t);
  const file = join(folder, "sluice.yaml");
  const pair = async (name: string) => generate([{ name: "commonName", value: name }], { keySize: 2048 });
  const [first, second, third] = [await pair("first"), await pair("second"), await pair("third")];
  const write = async (cert: string, key: string): Promise<void> => {
    await writeFile(join(folder, "tls.crt"), cert);
    await writeFile(join(folder, "tls.key"), key);
  };
  await write(first.cert, first.private);
  await writeFile(file, config(100, "useTLS: true\ncertificate: [{ name: c, certFile: tls.crt, keyFile: tls.key }]\n"));
  const gateway = await spawnGateway(file);
  t.after(() => gateway.stop());
  const client = await connect(gateway, "mqtts");
  t.after(() => client.endAsync(true));
  const nameSeen = async (): Promise<unknown> => {
    const socket = connectTls({ port: gateway.port, host: "127.0.0.1", rejectUnauthorized: false });
    await once(socket, "secureConnect");
    const { CN } = socket.getPeerCertificate().subject;
    socket.destroy();
    return CN;
  };
  assert.equal(await nameSeen(), "first");
  const renewed = {
    by: "file",
    changed: ["change MQTTProxy mqttproxy (certificate; for new connections: certificate)"],
  };
  assertChanged(await changedBy(gateway, () => write(second.cert, second.private)), renewed);
  assert.equal(await nameSeen(), "second");

  const failed = await changedBy(gateway, () => writeFile(join(folder, "tls.crt"), third.cert));
  assert.equal(failed.msg, "The config was not changed");
  assert.match(
    String(gateway.logs.findLast(({ where }) => where !== undefined)?.["where"]),
    /sluice\.yaml:7:\d+ > mqttproxy > certificate\[0\]\.keyFile$/,
  );
  assert.equal(await nameSeen(), "second");
  assertChanged(await changedBy(gateway, () => writeFile(join(folder, "tls.key"), third.private)), renewed);
  assert.equal(await nameSeen(), "third");
  assert.equal(client.connected, true);
  await client.publishAsync("t", "x", { qos: 1 });
});

test("a touch does nothing; SIGHUP reads at once", async (t) => {
  const file = join(await temporary(t), "sluice.yaml");
  await writeFile(file, config(100));
  const { gateway } = await start(t, file);
  await utimes(file, new Date(), new Date());
  await writeFile(file, await readFile(file));
  const same = await changedBy(gateway, () => Promise.resolve(gateway.signal("SIGHUP")));
  assert.deepEqual([same.msg, same["by"]], ["The config has not changed", "signal"]);
  assertChanged(await changedBy(gateway, () => writeFile(file, config(101))));
  assert.equal(await gateway.metric("sluice_config_reloads_total"), 3, "one for the start, the signal and the change");
});

test("a folder where something always moves does not keep a change from being seen", async (t) => {
  const folder = await temporary(t);
  const file = join(folder, "sluice.yaml");
  await writeFile(file, config(100));
  const { gateway } = await start(t, file);
  let isOver = false;
  const busy = (async () => {
    for (let n = 0; !isOver; n++) {
      await writeFile(join(folder, "busy"), String(n));
      await sleep(20);
    }
  })();
  try {
    assertChanged(await changedBy(gateway, () => writeFile(file, config(101))));
  } finally {
    isOver = true;
    await busy;
  }
});

test("a change during the start, or during a reload, is not missed", async (t) => {
  const file = join(await temporary(t), "sluice.yaml");
  await writeFile(file, config(100));
  const { gateway } = await start(t, file);
  // Each write falls somewhere else in the reading of the one before it.
  for (let limit = 101; limit < 130; limit++) {
    await writeFile(file, config(limit));
    gateway.signal("SIGHUP");
    await sleep((limit * 7) % 23);
  }
  await eventually(() => limitRunning(gateway), 129);
});

test("--no-watch: files may change, until SIGHUP", async (t) => {
  const file = join(await temporary(t), "sluice.yaml");
  await writeFile(file, config(100));
  const { gateway } = await start(t, file, ["--no-watch"]);
  await writeFile(file, config(101));
  // Longer than a watching gateway takes: its quiet period, its poll, and its quiet period again.
  await sleep(3000);
  assert.equal(await gateway.metric("sluice_config_reloads_total"), 1);
  assertChanged(await changedBy(gateway, () => Promise.resolve(gateway.signal("SIGHUP"))), {
    ...changedLimit,
    by: "signal",
  });
});
