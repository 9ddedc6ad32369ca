/**
 * A real Kafka for tests: the one of SLUICE_TEST_KAFKA or KAFKA_BROKERS (comma-separated host:port), else a one-node
 * Kafka run from its Maven Central jars (Java 17+ and Maven; cached in .cache/kafka), else none: the suite is skipped
 * with one line on stderr, or fails where CI=true.
 */
import { execFile, spawn, type ChildProcess } from "node:child_process";
import { createHash, randomBytes, randomUUID } from "node:crypto";
import { existsSync } from "node:fs";
import { cp, mkdir, mkdtemp, readFile, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { Kafka as KafkaJs, logLevel, type Admin, type ITopicConfig } from "kafkajs";
import { stopIdleTimer } from "../../plugins/kafka/client.ts";
import { findFreePort } from "./free-port.ts";
import { takeLock } from "./install-lock.ts";

const execute = promisify(execFile);
const cacheFolder = join(import.meta.dirname, "../../.cache/kafka");
const ownFolder = join(import.meta.dirname, "kafka");
const startTimeoutMs = 60_000;
const jarsTimeoutMs = 300_000;

export interface KafkaRecord {
  readonly topic: string;
  readonly partition: number;
  readonly offset: number;
  /** Milliseconds since the epoch. */
  readonly timestamp: number;
  readonly key: string | undefined;
  readonly value: Buffer;
  readonly headers: Readonly<Record<string, string>>;
}

export interface Kafka {
  /** `host:port` of each broker. */
  readonly brokers: string[];
  /** `host:port` of the second listener, as clients of it are told, where `secondListener` asked for one. */
  readonly second: string[];
  /** False where the broker was found running: then `kill`, `restart`, `pause` and `resume` throw. */
  readonly owned: boolean;
  /** Ends the broker, if owned, and removes its data. */
  stop(): Promise<void>;
  /** SIGKILL; resolves when the process has gone. The data stays for `restart`. */
  kill(): Promise<void>;
  /** Starts it again (ending it first, if it runs) with the same ports and data. */
  restart(): Promise<void>;
  /** SIGSTOP: connections stay open and nothing answers. */
  pause(): void;
  resume(): void;
  createTopic(topic: string, partitions?: number, config?: Record<string, string>): Promise<void>;
  /** One partition for each entry, on the nodes that it lists. */
  createAssignedTopic(topic: string, replicas: number[][]): Promise<void>;
  /** Runs a command line tool of Kafka's, `--bootstrap-server` added, and resolves with what it prints. */
  tool(mainClass: string, args: readonly string[]): Promise<string>;
  /** The broker with the id 2, where `nodes` asked for one. */
  readonly secondNode: { kill(): Promise<void>; restart(): Promise<void> };
  /** Resolves when the topic is no longer listed. */
  deleteTopic(topic: string): Promise<void>;
  listTopics(): Promise<string[]>;
  /** Reads from the start: `count` records, or without it all that the topic holds now. Rejects after `timeoutMs`. */
  consume(topic: string, options?: { count?: number; timeoutMs?: number }): Promise<KafkaRecord[]>;
  /** Partition -> offset of the next record. */
  endOffsets(topic: string): Promise<Map<number, number>>;
}

export interface StartOptions {
  /** A broker of one's own even where a shared one is offered: for tests that kill it. */
  readonly own?: boolean;
  /** Lines for server.properties; implies `own`. */
  readonly config?: Readonly<Record<string, string>>;
  /**
   * A second listener, named SECOND: called with its port, answers with the port that its clients are told, for instance
   * of a proxy in front of it. Implies `own`.
   */
  readonly secondListener?: (port: number) => number | Promise<number>;
  /** 2: another broker, with the id 2. Implies `own`. */
  readonly nodes?: 1 | 2;
}

/** Undefined where no Kafka can be had: `test("...", { skip: !kafka }, ...)`. */
export async function startKafka(options: StartOptions = {}): Promise<Kafka | undefined> {
  const offered = process.env["SLUICE_TEST_KAFKA"] ?? process.env["KAFKA_BROKERS"];
  if (offered && !options.own && !options.config && !options.secondListener && !options.nodes) {
    const client = createClient(offered.split(",").map((each) => each.trim()));
    const refuseLater = async () => refuse();
    const control = { kill: refuseLater, restart: refuseLater, pause: refuse, resume: refuse, tool: refuseLater };
    const secondNode = { kill: refuseLater, restart: refuseLater };
    return { ...client, second: [], owned: false, stop: () => client.disconnect(), ...control, secondNode };
  }
  const missing = await missingTools();
  if (missing) {
    const message = `no Kafka: ${missing}; set KAFKA_BROKERS or install Java 17+ and Maven`;
    if (process.env["CI"] === "true") throw new Error(message);
    process.stderr.write(`Kafka tests skipped: ${message}\n`);
    return undefined;
  }
  return startOwn(await installJars(), options);
}

async function missingTools(): Promise<string | undefined> {
  try {
    // Java writes its version to stderr: openjdk version "17.0.15".
    const { stderr, stdout } = await execute("java", ["-version"]);
    const version = Number(/version "(\d+)/.exec(stderr + stdout)?.[1]);
    if (!(version >= 17)) return `Java ${version} is too old`;
  } catch {
    return "java was not found";
  }
  if ((await findJars()) !== undefined) return undefined;
  try {
    await execute("mvn", ["-version"]);
  } catch {
    return "mvn was not found";
  }
  return undefined;
}

/** The folder for this pom.xml's jars, whether or not they are there yet. */
async function jarsFolder(): Promise<string> {
  const pom = await readFile(join(ownFolder, "pom.xml"));
  return join(cacheFolder, createHash("sha256").update(pom).digest("hex").slice(0, 12));
}

async function findJars(): Promise<string | undefined> {
  const folder = await jarsFolder();
  return existsSync(folder) ? folder : undefined;
}

/** Jars in `libs` and an empty, formatted data folder in `data`; made once, by one of the processes that want it. */
async function installJars(): Promise<string> {
  const folder = await jarsFolder();
  await mkdir(cacheFolder, { recursive: true });
  const lock = `${folder}.lock`;
  const deadline = Date.now() + jarsTimeoutMs;
  while (!existsSync(folder)) {
    if (!(await takeLock(lock))) {
      if (Date.now() > deadline) throw new Error(`waited too long for Kafka's jars; if nothing runs, remove ${lock}`);
      await sleep(200);
      continue;
    }
    const part = `${folder}.part`;
    try {
      if (existsSync(folder)) break;
      await rm(part, { recursive: true, force: true });
      const pom = join(ownFolder, "pom.xml");
      const output = `-DoutputDirectory=${join(part, "libs")}`;
      await execute("mvn", ["-q", "-B", "-f", pom, "dependency:copy-dependencies", output], { timeout: jarsTimeoutMs });
      await format(part);
      await rename(part, folder);
    } finally {
      await rm(lock, { recursive: true, force: true });
    }
  }
  return folder;
}

/** Formatting takes a JVM of its own, so every start copies the folder that was formatted once. */
async function format(folder: string): Promise<void> {
  const file = join(folder, "format.properties");
  await writeFile(file, properties(join(folder, "data"), 19_092, 19_093, {}));
  const uuid = randomBytes(16).toString("base64url");
  await execute("java", [
    "-cp",
    join(folder, "libs", "*"),
    "kafka.tools.StorageTool",
    "format",
    "-t",
    uuid,
    "-c",
    file,
  ]);
  await rm(join(folder, "data", ".lock"), { force: true });
}

function properties(
  data: string,
  port: number,
  controllerPort: number,
  extra: Readonly<Record<string, string>>,
): string {
  const values: Record<string, string> = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.quorum.voters": `1@127.0.0.1:${controllerPort}`,
    listeners: `PLAINTEXT://127.0.0.1:${port},CONTROLLER://127.0.0.1:${controllerPort}`,
    "advertised.listeners": `PLAINTEXT://127.0.0.1:${port}`,
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "log.dirs": data,
    "num.partitions": "4",
    "offsets.topic.num.partitions": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    // A broker that was killed may register again only when its old session has ended (default 9 s).
    "broker.heartbeat.interval.ms": "200",
    "broker.session.timeout.ms": "1000",
    ...extra,
  };
  return Object.entries(values)
    .map(([key, value]) => `${key}=${value}\n`)
    .join("");
}

async function startOwn(jars: string, { config = {}, secondListener, nodes = 1 }: StartOptions): Promise<Kafka> {
  const folder = await mkdtemp(join(tmpdir(), "sluice-kafka-"));
  const file = join(folder, "server.properties");
  let port = 0;
  let controllerPort = 0;
  let second: string[] = [];
  let child: ChildProcess | undefined;

  async function run(): Promise<void> {
    child = await runBroker(jars, file);
  }
  async function end(): Promise<void> {
    const ending = child;
    child = undefined;
    await endProcess(ending);
  }
  function signal(name: NodeJS.Signals): void {
    if (!child) throw new Error("the broker does not run");
    child.kill(name);
  }

  for (let attempt = 1; child === undefined; attempt++) {
    port = await findFreePort();
    await rm(join(folder, "data"), { recursive: true, force: true });
    await cp(join(jars, "data"), join(folder, "data"), { recursive: true });
    controllerPort = await findFreePort();
    const listeners = secondListener ? await nameSecond(port, controllerPort) : {};
    await writeFile(file, properties(join(folder, "data"), port, controllerPort, { ...listeners, ...config }));
    // Another process may take the port between the probe and the bind.
    await run().catch((error: unknown) => {
      if (attempt === 3) throw error;
    });
  }

  async function nameSecond(first: number, controller: number): Promise<Record<string, string>> {
    const own = await findFreePort();
    const told = (await secondListener?.(own)) ?? own;
    second = [`127.0.0.1:${told}`];
    const host = "127.0.0.1";
    return {
      listeners: `PLAINTEXT://${host}:${first},SECOND://${host}:${own},CONTROLLER://${host}:${controller}`,
      "advertised.listeners": `PLAINTEXT://${host}:${first},SECOND://${host}:${told}`,
      "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SECOND:PLAINTEXT,CONTROLLER:PLAINTEXT",
    };
  }

  const secondNode = await prepareSecondNode(jars, folder, controllerPort, config);
  if (nodes === 2) await secondNode.restart();
  const client = createClient([`127.0.0.1:${port}`]);
  return {
    ...client,
    second,
    secondNode,
    owned: true,
    async tool(mainClass, args) {
      const flags = ["-XX:TieredStopAtLevel=1", "-cp", join(jars, "libs", "*"), mainClass];
      const { stdout } = await execute("java", [...flags, "--bootstrap-server", `127.0.0.1:${port}`, ...args]);
      return stdout;
    },
    async stop() {
      await client.disconnect();
      await secondNode.kill();
      await end();
      await rm(folder, { recursive: true, force: true });
    },
    kill: end,
    async restart() {
      await end();
      await run();
    },
    pause: () => signal("SIGSTOP"),
    resume: () => signal("SIGCONT"),
  };
}

async function endProcess(ending: ChildProcess | undefined): Promise<void> {
  if (!ending || ending.exitCode !== null || ending.signalCode !== null) return;
  const exited = new Promise((resolve) => ending.once("exit", resolve));
  ending.kill("SIGKILL");
  await exited;
}

/** A broker beside the first, which is the controller of both. */
async function prepareSecondNode(
  jars: string,
  folder: string,
  controllerPort: number,
  config: Readonly<Record<string, string>>,
): Promise<Kafka["secondNode"]> {
  const data = join(folder, "data-2");
  const file = join(folder, "server-2.properties");
  let child: ChildProcess | undefined;
  return {
    async kill() {
      await endProcess(child);
    },
    async restart() {
      await endProcess(child);
      if (!existsSync(file)) {
        await mkdir(data);
        const meta = await readFile(join(jars, "data", "meta.properties"), "utf8");
        const own = meta.replace(/^node\.id=.*$/m, "node.id=2").replace(/^directory\.id=.*\n/m, "");
        await writeFile(join(data, "meta.properties"), own);
        const port = await findFreePort();
        const listeners = `PLAINTEXT://127.0.0.1:${port}`;
        const differing = { "process.roles": "broker", "node.id": "2", listeners };
        await writeFile(file, properties(data, port, controllerPort, { ...config, ...differing }));
      }
      child = await runBroker(jars, file);
    },
  };
}

/** Resolves when the log says that the broker has started. However this process ends, the broker ends with it. */
async function runBroker(jars: string, file: string): Promise<ChildProcess> {
  const log4j = `-Dlog4j2.configurationFile=${join(ownFolder, "log4j2.xml")}`;
  // One compiler tier and the serial collector: tests want a quick start more than throughput.
  const flags = ["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", log4j, "-cp", join(jars, "libs", "*")];
  const child = spawn("java", [...flags, "kafka.Kafka", file], { stdio: ["ignore", "pipe", "pipe"] });
  const kill = () => {
    child.kill("SIGKILL");
  };
  process.on("exit", kill);
  // `exit` is not emitted for a process that is itself killed; the guard outlives it and sees that.
  const script = 'while kill -0 "$1" && kill -0 "$2"; do sleep 1; done 2>/dev/null; kill -9 "$2" 2>/dev/null';
  const guard = spawn("sh", ["-c", script, "sh", String(process.pid), String(child.pid)], {
    detached: true,
    stdio: "ignore",
  });
  guard.unref();
  child.once("exit", () => {
    process.removeListener("exit", kill);
    guard.kill("SIGKILL");
  });

  let log = "";
  try {
    await new Promise<void>((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error("timed out")), startTimeoutMs);
      const read = (chunk: Buffer) => {
        log = (log + chunk.toString()).slice(-4000);
        if (!log.includes("Kafka Server started")) return;
        clearTimeout(timer);
        resolve();
      };
      child.stdout.on("data", read);
      child.stderr.on("data", read);
      child.once("error", reject);
      child.once("exit", () => {
        clearTimeout(timer);
        reject(new Error("the process ended"));
      });
    });
  } catch (cause) {
    kill();
    throw new Error(`Kafka did not start; the end of its log:\n${log}`, { cause });
  }
  return child;
}

function refuse(): never {
  throw new Error("this Kafka was found running and is not the test's to stop: use startKafka({ own: true })");
}

/** What tests do with a broker, over kafkajs. One admin connection, made when it is first needed. */
function createClient(brokers: string[]) {
  stopIdleTimer();
  const kafka = new KafkaJs({ brokers, clientId: "sluice-test", logLevel: logLevel.NOTHING, retry: { retries: 10 } });
  let connecting: Promise<Admin> | undefined;

  function admin(): Promise<Admin> {
    connecting ??= (async () => {
      const made = kafka.admin();
      await made.connect();
      return made;
    })();
    return connecting;
  }

  /** kafkajs waits for the leaders, but takes a topic that is not known everywhere yet for an error. */
  async function create(topic: ITopicConfig): Promise<void> {
    const connected = await admin();
    await connected.createTopics({ topics: [topic], waitForLeaders: false });
    const isLed = async (): Promise<boolean> => {
      const { topics } = await connected.fetchTopicMetadata({ topics: [topic.topic] });
      // That a broker leads a partition is known before the broker itself knows it.
      await connected.fetchTopicOffsets(topic.topic);
      return topics[0]?.partitions.every(({ leader }) => leader >= 0) ?? false;
    };
    while (!(await isLed().catch(() => false))) await sleep(20);
  }

  async function endOffsets(topic: string): Promise<Map<number, number>> {
    const connected = await admin();
    // A broker that has just started, or a topic just made, may not be led yet.
    for (let attempt = 0; ; attempt++) {
      try {
        const offsets = await connected.fetchTopicOffsets(topic);
        return new Map(offsets.map((each) => [each.partition, Number(each.high)]));
      } catch (error) {
        if (attempt === 50) throw error;
        await sleep(100);
      }
    }
  }

  async function consume(
    topic: string,
    { count, timeoutMs = 30_000 }: { count?: number; timeoutMs?: number } = {},
  ): Promise<KafkaRecord[]> {
    const wanted = count ?? [...(await endOffsets(topic)).values()].reduce((sum, each) => sum + each, 0);
    const records: KafkaRecord[] = [];
    if (wanted === 0) return records;
    const consumer = kafka.consumer({ groupId: `sluice-test-${randomUUID()}`, maxWaitTimeInMs: 100 });
    try {
      await consumer.connect();
      await consumer.subscribe({ topic, fromBeginning: true });
      let timer: NodeJS.Timeout | undefined;
      await new Promise<void>((resolve, reject) => {
        const late = () =>
          reject(new Error(`${records.length} of ${wanted} records of ${topic} after ${timeoutMs} ms`));
        timer = setTimeout(late, timeoutMs);
        consumer
          .run({
            autoCommit: false,
            async eachMessage({ partition, message }) {
              // kafkajs makes an array of a repeated header, and of one called like a member of every object.
              const headers = Object.entries(message.headers ?? {}).map(
                ([key, value]) => [key, String(Array.isArray(value) ? value.at(-1) : value)] as const,
              );
              records.push({
                topic,
                partition,
                offset: Number(message.offset),
                timestamp: Number(message.timestamp),
                key: message.key?.toString(),
                value: message.value ?? Buffer.alloc(0),
                headers: Object.fromEntries(headers),
              });
              if (records.length === wanted) resolve();
            },
          })
          .catch(reject);
      });
      clearTimeout(timer);
      return records;
    } finally {
      await consumer.disconnect();
    }
  }

  return {
    brokers,
    endOffsets,
    consume,
    async createTopic(topic: string, partitions = 4, config: Record<string, string> = {}) {
      const configEntries = Object.entries(config).map(([name, value]) => ({ name, value }));
      await create({ topic, numPartitions: partitions, configEntries });
    },
    async createAssignedTopic(topic: string, replicas: number[][]) {
      const replicaAssignment = replicas.map((nodes, partition) => ({ partition, replicas: nodes }));
      await create({ topic, replicaAssignment });
    },
    async deleteTopic(topic: string) {
      const connected = await admin();
      await connected.deleteTopics({ topics: [topic] });
      while ((await connected.listTopics()).includes(topic)) await sleep(50);
    },
    listTopics: async () => (await admin()).listTopics(),
    async disconnect() {
      const made = await connecting?.catch(() => undefined);
      await made?.disconnect();
    },
  };
}
