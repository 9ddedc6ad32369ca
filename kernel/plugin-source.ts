/** Where a plugin is to come from, as a user writes it: a name in the registry, a tarball or a folder. */
import { stat } from "node:fs/promises";
import { isAbsolute, resolve } from "node:path";
import { SluiceError } from "./errors.ts";
import { isRange } from "./versions.ts";

export type PluginSource =
  | { readonly sort: "registry"; readonly written: string; readonly name: string; readonly range: string | undefined }
  | { readonly sort: "tarball" | "folder"; readonly written: string; readonly path: string };

/** npm's rule for names; nothing that such a name is made of means anything in a path or to a shell. */
const nameRule = /^(?:@[a-z0-9~-][a-z0-9._~-]*\/)?[a-z0-9~-][a-z0-9._~-]*$/;

export const isPackageName = (text: string): boolean =>
  text.length <= 214 && nameRule.test(text) && !text.startsWith("-");

/** A dist-tag. */
const tagRule = /^[A-Za-z][\w.-]*$/;

/**
 * `name`, `name@version`, `name@range`, `name@tag`, `./x.tgz`, `./folder`; nothing that npm would fetch from elsewhere.
 * @throws SluiceError PLUGIN_SOURCE_INVALID
 */
export async function parseSource(written: string, cwd: string): Promise<PluginSource> {
  const text = written.startsWith("file:") ? written.slice("file:".length) : written;
  if (/\.(tgz|tar\.gz)$/.test(text) && !/^\w+:\/\//.test(text)) {
    const path = resolve(cwd, text);
    await mustBe(path, "file", written);
    return { sort: "tarball", written, path };
  }
  if (isAbsolute(text) || /^\.{1,2}(?:[\\/]|$)/.test(text)) {
    const path = resolve(cwd, text);
    await mustBe(path, "folder", written);
    return { sort: "folder", written, path };
  }
  const at = text.indexOf("@", 1);
  const name = at < 0 ? text : text.slice(0, at);
  const range = at < 0 ? undefined : text.slice(at + 1);
  if (!isPackageName(name)) {
    throw invalid(
      `"${written}" is no package name, tarball (x.tgz) or folder (./x): give one of them; what lies elsewhere, download first`,
    );
  }
  if (range !== undefined && (range === "" || !(isRange(range) || tagRule.test(range)))) {
    throw invalid(`"${range}" of "${written}" is no version: write one such as 1.2.3, ^1.2.0 or latest`);
  }
  return { sort: "registry", written, name, range };
}

async function mustBe(path: string, what: "file" | "folder", written: string): Promise<void> {
  const found = await stat(path).catch(() => undefined);
  if (found === undefined) throw invalid(`"${written}": there is no ${what} ${path}`);
  if (what === "file" ? !found.isFile() : !found.isDirectory()) throw invalid(`"${written}": ${path} is no ${what}`);
}

const invalid = (message: string): SluiceError => new SluiceError("PLUGIN_SOURCE_INVALID", message);
