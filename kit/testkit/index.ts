/**
 * What tests of a plugin are made of. The parts underneath are the gateway's own: options are validated, filters built
 * and packets run as `sluice run` does it.
 */
export { createTestClock, type TestClock } from "./clock.ts";
export { runCommand, type CommandRun } from "./command.ts";
export {
  createConnectContext,
  createDisconnectContext,
  createPublishContext,
  createSubscribeContext,
  createUnsubscribeContext,
  type Decision,
} from "./context.ts";
export { testPlugin, type ContractOptions } from "./contract.ts";
export { createFilterMaker, type FilterMaker, type Problems } from "./filter.ts";
export { createTestHost, type LogLine, type TestHost } from "./host.ts";
export { journalContract, type JournalPlace } from "./journal-contract.ts";
export { createMemoryConfig, type MemoryConfig } from "./memory-config.ts";
export {
  openPipeline,
  type Outcome,
  type PipelineOptions,
  type Run,
  type Step,
  type TestPipeline,
} from "./pipeline.ts";
export { createMemoryProxies, type MemoryProxies } from "./proxies.ts";
