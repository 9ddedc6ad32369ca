/** What a generator process runs: started once, read as often as wanted, stopped. */

/** Counts since the start, which is why two readings can be subtracted. */
export interface Counts {
  /** Of messages, or of connections that were made. */
  readonly sent: number;
  /** Answered: PUBACK, or PINGRESP behind the messages, or an HTTP answer, or a CONNACK. */
  readonly acked: number;
  /** Deliveries to subscribers. */
  readonly received?: number;
  /** Messages that were due while the server took none. */
  readonly skipped?: number;
  /** Connections that the server has closed. */
  readonly closed?: number;
  /** Milliseconds to the last connection. */
  readonly tookMs?: number;
  /** HTTP answers by status. */
  readonly statuses?: Readonly<Record<string, number>>;
  /** See latencies.ts. */
  readonly latencies: readonly number[];
  /** Other times, by name. */
  readonly more?: Readonly<Record<string, readonly number[]>>;
}

export interface Running {
  read(): Counts;
  /** Ends and closes all; resolves with the last counts. */
  stop(): Promise<Counts>;
}

export interface Load<Options> {
  start(options: Options): Promise<Running>;
}
