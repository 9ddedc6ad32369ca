/** Versions against ranges, in npm's terms. */
import semver from "semver";

export const isVersion = (text: string): boolean => semver.valid(text) === text;

export const isRange = (text: string): boolean => semver.validRange(text) !== null;

/** A prerelease of what the range asks for will do. */
export const satisfies = (version: string, range: string): boolean =>
  semver.satisfies(version, range, { includePrerelease: true });
