/** How a config names a kind: `Kind`, or `package#Kind` where several packages provide one of that name. */

export interface KindName {
  readonly package: string | undefined;
  readonly kind: string;
}

export function parseKindName(written: string): KindName {
  const at = written.indexOf("#");
  return at < 0
    ? { package: undefined, kind: written }
    : { package: written.slice(0, at), kind: written.slice(at + 1) };
}

/** Without the package. */
export const plainKind = (written: string): string => parseKindName(written).kind;
