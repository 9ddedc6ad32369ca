/** Secrets are shown as `***`: what comes back so is what is written there already. */
import { isDeepStrictEqual } from "node:util";

const mask = "***";

const isParts = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/**
 * `value` with each `***` replaced by what `written` has there, where `shown` (the same document as it was shown) has a
 * secret there; `missing` is told of the others. An item of a list is known by being the same, or by its `name`.
 */
export function reveal(
  value: unknown,
  shown: unknown,
  written: unknown,
  missing: (path: string) => void,
  path = "",
): unknown {
  if (value === mask) {
    if (shown === mask && written !== undefined) return written;
    missing(path);
    return value;
  }
  if (Array.isArray(value)) {
    const [from, texts] = [Array.isArray(shown) ? shown : [], Array.isArray(written) ? written : []];
    return value.map((item: unknown, index) => {
      const at = counterpart(item, index, from, value.length);
      return reveal(item, from[at], texts[at], missing, `${path}[${index}]`);
    });
  }
  if (!isParts(value)) return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, part]) => [
      key,
      reveal(part, member(shown, key), member(written, key), missing, path === "" ? key : `${path}.${key}`),
    ]),
  );
}

/** A guess by position alone could hand one user another one's password: -1 where it is not clear. */
function counterpart(item: unknown, index: number, shown: readonly unknown[], length: number): number {
  const same = shown.flatMap((each, at) => (isDeepStrictEqual(each, item) ? [at] : []));
  if (same.includes(index) && shown.length === length) return index;
  if (same.length === 1) return same[0] ?? -1;
  if (!isParts(item) || typeof item["name"] !== "string") return -1;
  const named = shown.flatMap((each, at) => (isParts(each) && each["name"] === item["name"] ? [at] : []));
  return named.length === 1 ? (named[0] ?? -1) : -1;
}

/** Keys may be written in another case than they are shown. */
function member(of: unknown, key: string): unknown {
  if (!isParts(of)) return undefined;
  if (Object.hasOwn(of, key)) return of[key];
  const other = Object.keys(of).find((each) => each.toLowerCase() === key.toLowerCase());
  return other === undefined ? undefined : of[other];
}
