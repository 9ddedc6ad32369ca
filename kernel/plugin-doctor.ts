/** What is wrong with the installed plugins, or may surprise: in plain words, each with what to do. */
import { access } from "node:fs/promises";
import { join } from "node:path";
import type { Installed } from "./installed-plugins.ts";
import { messageOf, SluiceError, type Code } from "./errors.ts";
import { kernelKindNames } from "./kernel-kinds.ts";
import { lockPath, readPluginLock, type LockedPlugin, type PluginLock } from "./plugin-lock.ts";
import { filesDigest, leftovers, packageFolder, placeOf, storedPlaces } from "./plugin-store.ts";
import manifest from "./package.json" with { type: "json" };

export interface Finding {
  /** `warning`: nothing is kept from working. */
  readonly level: "problem" | "warning";
  readonly code: Code;
  readonly message: string;
}

export async function examinePlugins({ registry, folder, uses, isTrustKnown }: Installed): Promise<Finding[]> {
  const found: Finding[] = [];
  const problem = (code: Code, message: string): void => void found.push({ level: "problem", code, message });
  const warning = (code: Code, message: string): void => void found.push({ level: "warning", code, message });
  if (!isTrustKnown) {
    problem(
      "CONFIG_INVALID",
      "the Gateway document has problems, so that only the distribution's plugins are used: sluice check",
    );
  }
  for (const [kind, users] of uses) {
    if (kernelKindNames.includes(kind)) continue;
    try {
      registry.find(kind, kernelKindNames);
    } catch (error) {
      if (!(error instanceof SluiceError)) throw error;
      problem(error.code, `${users.join(", ")}: ${error.message}`);
    }
  }
  for (const { package: name, folder: where, code, message } of registry.problems()) {
    const what = code === "PLUGIN_LOCK_INVALID" ? message : `${name} (${where}) ${message}`;
    if (code === "PLUGIN_DUPLICATE_KIND") warning(code, what);
    else problem(code, what);
  }
  for (const { package: name, folder: where, used } of registry.copies()) {
    warning("PLUGIN_DUPLICATE_KIND", `${name} is there twice: ${used} is used, and ${where} is not`);
  }
  const lock = await readPluginLock(folder).catch((): PluginLock => new Map());
  for (const [name, entry] of lock) found.push(...(await examineLocked(name, entry, folder)));
  for (const { name, version, place } of await storedPlaces(folder)) {
    // One earlier version is kept on purpose.
    if (!lock.has(name))
      warning("PLUGIN_CHANGED", `${place} is not in plugins.lock: delete it, or sluice plugin add ${name}@${version}`);
  }
  for (const path of await leftovers(folder)) {
    warning(
      "PLUGIN_CHANGED",
      `${path} was left by a command that was interrupted: the next sluice plugin add or remove clears it up`,
    );
  }
  return found;
}

async function examineLocked(
  name: string,
  { version, source, files, scripts }: LockedPlugin,
  folder: string,
): Promise<Finding[]> {
  const place = placeOf(folder, name, version);
  const again = `sluice plugin add ${source}`;
  const found: Finding[] = [];
  let actual: string;
  try {
    actual = await filesDigest(place);
  } catch (error) {
    const message = `${lockPath(folder)} lists ${name} ${version}, and ${place} can't be read (${messageOf(error)}): ${again}`;
    return [{ level: "problem", code: "PLUGIN_CHANGED", message }];
  }
  if (actual !== files) {
    const message = `the files in ${place} are not those that were installed: ${again}`;
    found.push({ level: "problem", code: "PLUGIN_CHANGED", message });
  }
  if (scripts.skipped.length > 0) {
    const flags = scripts.skipped.map((each) => `--allow-scripts ${each}`).join(" ");
    const message = `${name}: the install scripts of ${scripts.skipped.join(", ")} were not run; if it needs them: ${again} ${flags}`;
    found.push({ level: "warning", code: "PLUGIN_CHANGED", message });
  }
  const isCopied = await access(join(packageFolder(place, manifest.name), "package.json")).then(
    () => true,
    () => false,
  );
  if (isCopied) {
    const message = `${name} brings a copy of ${manifest.name} of its own: its author should list it as an optional peer dependency`;
    found.push({ level: "warning", code: "PLUGIN_DUPLICATE_KIND", message });
  }
  return found;
}
