/** Every error code of the kernel, with what it means; docs/errors.md is written from this list. */
export const codes = {
  CONFIG_NOT_FOUND: "no config was found",
  CONFIG_INVALID: "the config has problems; all are listed",
  CONFIG_CONFLICT: "the config has been changed by someone else in the meantime",
  CONFIG_READ_ONLY: "the config's files can't be written, so that nothing was changed",
  PLUGIN_NOT_FOUND: "no installed package provides a kind that the config names",
  PLUGIN_BROKEN: "a package's manifest, schema or entry is faulty",
  PLUGIN_DEPENDENCY_MISSING: "a plugin could not import a package that it depends on",
  PLUGIN_INCOMPATIBLE: "a plugin needs another version of the plugin API",
  PLUGIN_DUPLICATE_KIND: "two packages provide the same kind",
  PLUGIN_REFUSED: "plugins.allow, deny or strict of the config keeps a package out",
  PLUGIN_SOURCE_INVALID: "neither a package name nor a tarball nor a folder",
  PLUGIN_INSTALL_FAILED: "a package could not be fetched or installed",
  PLUGIN_CHANGED: "an installed package is not what plugins.lock says",
  PLUGIN_LOCK_INVALID: "plugins.lock can't be read",
  PLUGIN_IN_USE: "the config would not be valid without the plugin",
  PLUGIN_BUSY: "another command is changing the plugins",
  PLUGIN_START_TIMEOUT: "a plugin did not start before its deadline",
  FILTER_CREATE_FAILED: "a filter could not be created from its options",
  ISOLATION_LOST: "an isolated filter's thread ended with the packet in it",
  ISOLATION_FULL: "too many packets wait for an isolated filter",
  ISOLATION_NOT_CLONEABLE: "a value that can't be copied from one thread to another",
  ISOLATION_REFUSED: "something that an isolated filter can't have",
  SERVICE_START_FAILED: "a service could not be started",
  RESTART_NEEDED: "a change that a running gateway can't make",
  LISTEN_FAILED: "an address could not be bound",
  PROXY_NOT_FOUND: "no proxy has this name",
  TOPIC_INVALID: "not a valid topic name",
  PROPERTIES_INVALID: "not properties that MQTT 5 can carry",
  MALFORMED_PACKET: "bytes that are not a valid MQTT packet",
  PROTOCOL_ERROR: "a packet that MQTT does not allow here",
  UNSUPPORTED_VERSION: "a client that speaks a version of MQTT which is not served",
  PACKET_TOO_LARGE: "a packet over the maximum size",
  PIPELINE_DEADLINE: "a pipeline did not finish before its deadline",
  PROXY_FULL: "a proxy has as many clients as maxAllowedConnection lets it",
  QUEUE_FULL: "a session's queue is full",
  STORE_CLOSED: "the session store is closed",
  STORE_FAILED: "the session store could not make a message or subscription safe",
} as const;

export type Code = keyof typeof codes;

/** An error whose `code` a program can rely on and whose message says what, where and what to do. */
export class SluiceError extends Error {
  readonly code: Code;
  /** Which listener of a proxy it is about. */
  readonly listener: string | undefined;
  constructor(code: Code, message: string, options?: ErrorOptions & { readonly listener?: string }) {
    super(message, options);
    this.name = "SluiceError";
    this.code = code;
    this.listener = options?.listener;
  }
}

export type ConfigProblems = readonly { readonly where: string; readonly message: string }[];

/** What is wrong with a config, all of it in `problems`, the first in the message. */
export function configError(
  problems: ConfigProblems,
  code: Code = "CONFIG_INVALID",
  options?: ErrorOptions,
): SluiceError & { readonly problems: ConfigProblems } {
  const [first] = problems;
  const more = problems.length > 1 ? ` (and ${problems.length - 1} more)` : "";
  return Object.assign(new SluiceError(code, `${first?.where}: ${first?.message}${more}`, options), { problems });
}

/** What a {@link configError} lists; undefined for any other error. */
export function problemsOf(error: unknown): ConfigProblems | undefined {
  return error instanceof SluiceError && "problems" in error ? (error.problems as ConfigProblems) : undefined;
}

/** For a log line: without the stack, and safe with whatever was thrown. Undefined for no error. */
export function messageOf(error: unknown): string | undefined {
  if (error === undefined) return undefined;
  if (error instanceof Error) return error.message;
  return typeof error === "string" ? error : JSON.stringify(error);
}
