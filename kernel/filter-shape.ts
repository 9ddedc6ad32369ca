/**
 * The shape of a topic filter: at which levels it says something. Filters of one shape are told apart by what they say there,
 * and so are the topic names that they match: `fleet/+/7/#` matches those topic names alone whose first and third level are
 * `fleet` and `7`. A hash of these levels is the key by which topic names are found for a filter.
 */

/** Of longer filters there is no shape; the bits of {@link FilterShape.literals} have to suffice. */
const maxLevels = 16;

export interface FilterShape {
  /** Bit n is set where level n is no wildcard. Never 0. */
  readonly literals: number;
  /** `#` not counted. */
  readonly levels: number;
  readonly endsInHash: boolean;
}

/** A filter that has the shape `shape`, by what it says in it. */
export interface ShapedFilter {
  readonly shape: FilterShape;
  readonly key: number;
}

/** Undefined where it has none: too many levels, or none but wildcards, so that it matches nearly everything. */
export function shapedFilterOf(filter: string): ShapedFilter | undefined {
  const levels = filter.split("/");
  const endsInHash = levels.at(-1) === "#";
  if (endsInHash) levels.pop();
  if (levels.length > maxLevels) return undefined;
  let literals = 0;
  for (const [n, level] of levels.entries()) if (level !== "+") literals |= 1 << n;
  if (literals === 0) return undefined;
  const shape: FilterShape = { literals, levels: levels.length, endsInHash };
  const hashes = levels.map((level) => hashOf(level, 0, level.length));
  return { shape, key: keyFrom(shape.literals, hashes) };
}

export function isSameShape(a: FilterShape, b: FilterShape): boolean {
  return a.literals === b.literals && a.levels === b.levels && a.endsInHash === b.endsInHash;
}

/** One topic name at a time, without an object for each. */
export interface ShapedTopic {
  read(topic: string): void;
  /** The key that a filter of this shape has if it matches the topic name read last; undefined = none of them does. */
  keyIn(shape: FilterShape): number | undefined;
}

export function createShapedTopic(): ShapedTopic {
  const hashes = new Int32Array(maxLevels);
  /** More than {@link maxLevels} are not counted. */
  let levels = 0;

  return {
    read(topic) {
      levels = 0;
      for (let from = 0; from <= topic.length && levels <= maxLevels; levels++) {
        const slash = topic.indexOf("/", from);
        const end = slash < 0 ? topic.length : slash;
        if (levels < maxLevels) hashes[levels] = hashOf(topic, from, end);
        from = end + 1;
      }
    },
    keyIn(shape) {
      const isLongEnough = shape.endsInHash ? levels >= shape.levels : levels === shape.levels;
      return isLongEnough ? keyFrom(shape.literals, hashes) : undefined;
    },
  };
}

/** FNV-1a, of UTF-16 units. */
function hashOf(text: string, from: number, end: number): number {
  let hash = 0x811c9dc5;
  for (let at = from; at < end; at++) hash = Math.imul(hash ^ text.charCodeAt(at), 0x01000193);
  return hash;
}

function keyFrom(literals: number, hashes: ArrayLike<number>): number {
  let key = 0;
  for (let n = 0, rest = literals; rest !== 0; n++, rest >>>= 1) {
    if ((rest & 1) !== 0) key = Math.imul(key ^ (hashes[n] ?? 0), 0x5bd1e995) ^ (key >>> 15);
  }
  return key;
}
