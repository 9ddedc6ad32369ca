import type { X509Certificate } from "node:crypto";
export type PacketType = "Connect" | "Publish" | "Subscribe" | "Unsubscribe" | "Disconnect";
export type QoS = 0 | 1 | 2;
export type UserProperties = readonly (readonly [name: string, value: string])[];
export interface MessageProperties {
    readonly payloadFormat?: 0 | 1 | undefined;
    readonly messageExpiry?: number | undefined;
    readonly contentType?: string | undefined;
    readonly responseTopic?: string | undefined;
    readonly correlationData?: Buffer | undefined;
    readonly userProperties?: UserProperties | undefined;
}
export interface Message {
    topic: string;
    payload: Buffer;
    qos: QoS;
    retain: boolean;
    properties?: MessageProperties | undefined;
}
export interface Will extends Message {
    readonly delaySec: number;
}
export interface SubscriptionOptions {
    readonly qos: QoS;
    readonly noLocal: boolean;
    readonly retainAsPublished: boolean;
    readonly retainHandling: 0 | 1 | 2;
    readonly identifier: number;
}
export type Reason = "unspecifiedError" | "malformedPacket" | "protocolError" | "implementationSpecificError" | "unsupportedProtocolVersion" | "clientIdentifierNotValid" | "badUserNameOrPassword" | "notAuthorized" | "serverUnavailable" | "serverBusy" | "banned" | "serverShuttingDown" | "badAuthenticationMethod" | "keepAliveTimeout" | "sessionTakenOver" | "topicFilterInvalid" | "topicNameInvalid" | "packetIdentifierInUse" | "receiveMaximumExceeded" | "topicAliasInvalid" | "packetTooLarge" | "messageRateTooHigh" | "quotaExceeded" | "administrativeAction" | "payloadFormatInvalid" | "retainNotSupported" | "qosNotSupported" | "useAnotherServer" | "serverMoved" | "sharedSubscriptionsNotSupported" | "connectionRateExceeded" | "maximumConnectTime" | "subscriptionIdentifiersNotSupported" | "wildcardSubscriptionsNotSupported";
export interface ConnectProperties {
    readonly sessionExpiry?: number | undefined;
    readonly receiveMaximum?: number | undefined;
    readonly maximumPacketSize?: number | undefined;
    readonly topicAliasMaximum?: number | undefined;
    readonly requestResponseInformation?: boolean | undefined;
    readonly requestProblemInformation?: boolean | undefined;
    readonly userProperties?: UserProperties | undefined;
    readonly authenticationMethod?: string | undefined;
    readonly authenticationData?: Buffer | undefined;
}
export interface ConnectPacket {
    readonly clientId: string;
    readonly username: string | undefined;
    readonly password: Buffer | undefined;
    readonly clean: boolean;
    readonly keepalive: number;
    readonly will: Will | undefined;
    readonly properties?: ConnectProperties | undefined;
}
export interface PublishPacket {
    topic: string;
    payload: Buffer;
    qos: QoS;
    readonly retain: boolean;
    readonly dup: boolean;
    readonly packetId: number | undefined;
    properties?: MessageProperties | undefined;
}
export interface SubscribePacket {
    readonly packetId: number;
    readonly subscriptions: SubscriptionRequest[];
    readonly userProperties?: UserProperties | undefined;
}
export interface SubscriptionRequest {
    readonly topicFilter: string;
    qos: QoS;
    refused: boolean | Reason;
    readonly noLocal?: boolean;
    readonly retainAsPublished?: boolean;
    readonly retainHandling?: 0 | 1 | 2;
}
export interface UnsubscribePacket {
    readonly packetId: number;
    readonly topicFilters: readonly string[];
    readonly userProperties?: UserProperties | undefined;
}
export interface DisconnectPacket {
    readonly graceful: boolean;
    readonly reasonCode?: number;
    readonly userProperties?: UserProperties | undefined;
}
export interface Client {
    readonly id: string;
    readonly username: string | undefined;
    readonly address: string;
    readonly protocolVersion: number;
    readonly certificate: X509Certificate | undefined;
    readonly data: Map<string, unknown>;
}
interface ContextOf<T extends PacketType, P> {
    readonly type: T;
    readonly origin: "client" | "will" | "presence";
    readonly packet: P;
    readonly client: Client;
    readonly data: Map<string, unknown>;
    readonly signal: AbortSignal;
    drop(): void;
    reject(reason: Reason, text?: string): void;
    disconnect(reason: Reason, text?: string): void;
}
export interface Authentication {
    readonly method: string;
    readonly data: Buffer | undefined;
    readonly reauth: boolean;
    accept(data?: Buffer): void;
    challenge(data?: Buffer): Promise<Buffer | undefined>;
}
export interface ConnectContext extends ContextOf<"Connect", ConnectPacket> {
    readonly auth?: Authentication | undefined;
}
export type PublishContext = ContextOf<"Publish", PublishPacket>;
export type SubscribeContext = ContextOf<"Subscribe", SubscribePacket>;
export type UnsubscribeContext = ContextOf<"Unsubscribe", UnsubscribePacket>;
export type DisconnectContext = ContextOf<"Disconnect", DisconnectPacket>;
export type FilterContext = ConnectContext | PublishContext | SubscribeContext | UnsubscribeContext | DisconnectContext;
export type FilterResult = string | void | undefined;
export interface Fault extends Error {
    readonly code?: string;
    readonly poison?: boolean;
}
export interface PendingResult {
    then(answer: (result: FilterResult) => void, fail: (error: unknown) => void): unknown;
}
export interface Filter {
    handle(ctx: FilterContext): FilterResult | PendingResult;
    adopt?(previous: Filter): void;
    close?(): void | Promise<void>;
    health?(): Health;
}
export interface Health {
    readonly ok: boolean;
    readonly detail?: string;
}
export interface FilterKind<C = unknown> {
    readonly kind: string;
    readonly packets: readonly PacketType[];
    readonly results: readonly string[];
    readonly discards?: readonly string[];
    readonly concurrent?: boolean;
    validate?(config: C): readonly FieldProblem[];
    create(config: C, host: Host): Filter | Promise<Filter>;
}
export interface JournalEntry {
    readonly key: string;
    readonly value: Buffer | undefined;
}
export interface Journal {
    readonly durability: "process" | "fsync";
    read(): AsyncIterable<readonly {
        readonly key: string;
        readonly value: Buffer;
    }[]>;
    write(changes: readonly JournalEntry[]): Promise<void>;
}
export interface Service {
    readonly journal?: Journal;
    adopt?(previous: Service): void;
    start?(): void | Promise<void>;
    stop?(): void | Promise<void>;
    health?(): Health;
}
export interface ServiceKind<C = unknown> {
    readonly kind: string;
    readonly role?: "store";
    validate?(config: C): readonly FieldProblem[];
    create(config: C, host: Host): Service | Promise<Service>;
}
export interface FieldProblem {
    readonly field: readonly (string | number)[];
    readonly message: string;
}
export interface Command {
    readonly summary: string;
    readonly help: string;
    run(args: readonly string[], io: CommandIo): Promise<number>;
}
export interface CommandIo {
    readonly stdin: NodeJS.ReadableStream;
    readonly stdout: NodeJS.WritableStream;
    readonly stderr: NodeJS.WritableStream;
    readonly env: NodeJS.ProcessEnv;
    readonly colors: boolean;
    readonly signal: AbortSignal;
    loadConfig(from?: string): Promise<LoadedConfig>;
}
export interface LoadedConfig {
    readonly path: string;
    readonly folder: string;
    readonly documents: readonly ConfigDocument[];
}
export interface ConfigDocument {
    readonly kind: string;
    readonly name: string;
    readonly [field: string]: unknown;
}
export interface Logger {
    debug(fields: object, message: string): void;
    info(fields: object, message: string): void;
    warn(fields: object, message: string): void;
    error(fields: object, message: string): void;
}
export interface Counter {
    inc(labels?: Record<string, string>, by?: number): void;
    with(labels: Record<string, string>): {
        inc(by?: number): void;
    };
}
export interface Gauge {
    set(labels: Record<string, string>, value: number): void;
}
export interface GaugeOptions {
    readonly merge?: "sum" | "max" | "min";
}
export interface Histogram {
    observe(labels: Record<string, string>, value: number): void;
    with(labels: Record<string, string>): {
        observe(value: number): void;
    };
}
export interface Metrics {
    counter(name: string, help: string, labels?: readonly string[]): Counter;
    gauge(name: string, help: string, labels?: readonly string[], collect?: (gauge: Gauge) => void, options?: GaugeOptions): Gauge;
    histogram(name: string, help: string, labels?: readonly string[], buckets?: readonly number[]): Histogram;
    text(): Promise<string>;
    readonly contentType: string;
}
export interface Clock {
    now(): number;
    setTimeout(callback: () => void, ms: number): {
        clear(): void;
    };
}
export interface PublishRequest {
    readonly clientId?: string | undefined;
    readonly waitMs?: number | undefined;
    readonly countAll?: boolean | undefined;
}
export interface PublishReceipt {
    readonly clientId: string;
    readonly outcome: "delivered" | "queued" | "refused" | "timeout";
}
export interface PublishOutcome {
    readonly matched: number;
    readonly connected: number;
    readonly uncounted?: readonly ("absent" | "otherNodes")[] | undefined;
    readonly durable: boolean;
    readonly receipts?: readonly PublishReceipt[];
    readonly receiptCounts?: Readonly<Record<PublishReceipt["outcome"], number>>;
}
export interface SessionInfo {
    readonly clientId: string;
    readonly connected: boolean;
    readonly clean: boolean;
    readonly username: string | undefined;
    readonly address: string | undefined;
    readonly connectedAt: number;
    readonly subscriptions: readonly {
        readonly topicFilter: string;
        readonly qos: QoS;
    }[];
    readonly queued: number;
    readonly inflight: number;
    readonly expiresAt?: number | undefined;
}
export interface ProxyHandle {
    readonly name: string;
    readonly sessions: {
        query(): Promise<readonly SessionInfo[]>;
        remove(clientId: string): Promise<boolean>;
    };
    status(): Record<string, unknown>;
}
export interface KindInfo {
    readonly kind: string;
    readonly family: "filter" | "service" | "kernel";
    readonly package: string;
    readonly version: string;
    readonly description: string;
    readonly schema: object;
    readonly results?: readonly string[];
    readonly packets?: readonly PacketType[];
}
export interface PlanItem {
    readonly kind: string;
    readonly name: string;
    readonly action: "keep" | "build" | "change" | "drop";
    readonly fields: readonly string[];
    readonly notes: readonly string[];
}
export interface Plan {
    readonly items: readonly PlanItem[];
    readonly isEmpty: boolean;
}
export interface ConfigChange {
    readonly put?: readonly ConfigDocument[];
    readonly remove?: readonly {
        readonly kind?: string;
        readonly name: string;
    }[];
}
export interface ChangeOptions {
    readonly by: string;
    readonly dryRun?: boolean;
    readonly ifVersion?: number;
}
export interface ConfigResult {
    readonly version: number;
    readonly plan: Plan;
    readonly documents: readonly ConfigDocument[];
    readonly warnings: readonly {
        readonly where: string;
        readonly message: string;
    }[];
    readonly nodes?: readonly NodeConfigResult[];
}
export interface NodeConfigResult {
    readonly node: string;
    readonly outcome: "applied" | "accepted" | "refused" | "unreached";
    readonly version?: number;
    readonly plan?: Plan;
    readonly problem?: string;
}
export interface HistoryEntry {
    readonly version: number;
    readonly by: string;
    readonly at: number;
    readonly changed: readonly string[];
}
export interface ConfigControl {
    apply(change: ConfigChange, o: ChangeOptions): Promise<ConfigResult>;
    history(): readonly HistoryEntry[];
    rollback(version: number, o: ChangeOptions): Promise<ConfigResult>;
}
export interface ObjectHealth extends Health {
    readonly name: string;
}
export interface MemberInfo {
    readonly node: string;
    readonly incarnation: string;
    readonly isSelf: boolean;
    readonly state: "up" | "silent" | "down" | "left";
    readonly report: MemberReport | undefined;
}
export interface MemberReport {
    readonly version: string;
    readonly startedAt: number;
    readonly ready: boolean;
    readonly unhealthy: readonly {
        readonly name: string;
        readonly detail?: string;
    }[];
    readonly config: {
        readonly version: number;
        readonly digest: string;
    };
    readonly connections: number;
    readonly sessions: number;
}
export interface Host {
    readonly name: string;
    readonly folder: string;
    readonly log: Logger;
    readonly metrics: Metrics;
    readonly clock: Clock;
    readonly signal: AbortSignal;
    publish(proxy: string, message: Message, request?: PublishRequest): Promise<PublishOutcome>;
    readonly proxies: {
        get(name: string): ProxyHandle | undefined;
        list(): readonly ProxyHandle[];
    };
    readonly config: ConfigControl & {
        documents(): readonly ConfigDocument[];
        version(): number;
    };
    kinds(): readonly KindInfo[];
    health(): readonly ObjectHealth[];
    readonly worker: {
        readonly index: number;
        readonly count: number;
    };
    readonly cluster: {
        readonly isJoined: boolean;
        members(): Promise<readonly MemberInfo[]>;
    };
    about(): {
        name: string;
        version: string;
        node: string;
        startedAt: number;
    };
    readonly logLevel: {
        get(): string;
        set(level: string): void;
    };
    readonly ready: Promise<void>;
    isReady(): boolean;
    drain(): void;
}
export {};
