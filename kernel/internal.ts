/**
 * What of the kernel `@sluice/testkit` runs, so that a test's parts are the gateway's own. Exported for it alone: no part
 * of the plugin API, and different from one release to the next.
 */
export { createAddresses } from "./addresses.ts";
export { loadSpec } from "./config.ts";
export { parseDocuments } from "./documents.ts";
export { configError, SluiceError } from "./errors.ts";
export { buildGeneration, nothing } from "./generation.ts";
export { createHost, systemClock } from "./host.ts";
export type { HostSource, RootLogger, SharedHost } from "./host.ts";
export { createMemoryStore } from "./memory-store.ts";
export { createMetrics } from "./metrics.ts";
export type { Outcome } from "./outcome.ts";
export { createLane } from "./pipeline.ts";
export type { Lane } from "./pipeline.ts";
export { findPlugins } from "./registry.ts";
export { schemaCompiler } from "./schema.ts";
export type { Spec } from "./spec.ts";
export { matches, topicNameProblem } from "./topics.ts";
