/** A record of a packet that waits for Kafka, and the answer that the gateway waits for. */
import type { FilterContext, FilterResult, PendingResult } from "@sluice/kernel";
import type { Entry, Owner } from "./entry.ts";
import type { Content } from "./record.ts";

/**
 * A class, since there is one for each packet under way: it is the pending result itself, so that a batch is settled
 * without a promise for each of its records.
 */
export class WaitingRecord implements Entry, PendingResult {
  readonly topic: string;
  readonly key: string | null;
  readonly value: Buffer;
  readonly headers: Content["headers"];
  readonly timestamp: number;
  partition: number | undefined;
  readonly bytes: number;
  readonly expiresAt: number;
  readonly clientId: string;
  owner: Owner;
  readonly ctx: FilterContext;
  private answer: ((result: FilterResult) => void) | undefined;
  private fail: ((error: unknown) => void) | undefined;
  /** What became of it before anybody has asked. */
  private early: (() => void) | undefined;

  constructor(content: Content, ctx: FilterContext, expiresAt: number, owner: Owner) {
    this.topic = content.topic;
    this.key = content.key;
    this.value = content.value;
    this.headers = content.headers;
    this.timestamp = content.timestamp;
    this.partition = content.partition;
    this.bytes = content.bytes;
    this.expiresAt = expiresAt;
    this.clientId = ctx.client.id;
    this.owner = owner;
    this.ctx = ctx;
  }

  // oxlint-disable-next-line unicorn/no-thenable -- what the plugin API calls a pending result
  then(answer: (result: FilterResult) => void, fail: (error: unknown) => void): void {
    this.answer = answer;
    this.fail = fail;
    const { early } = this;
    if (early) queueMicrotask(early);
  }

  resolve(result?: string): void {
    if (this.answer) this.answer(result);
    else this.early = () => this.answer?.(result);
  }

  reject(error: Error): void {
    if (this.fail) this.fail(error);
    else this.early = () => this.fail?.(error);
  }
}
