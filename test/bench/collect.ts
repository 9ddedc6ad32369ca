/** Imported before a server that runs on Node: SIGUSR2 collects its garbage. Needs --expose-gc. */
process.on("SIGUSR2", () => globalThis.gc?.());
