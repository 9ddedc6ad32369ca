/**
 * Which messages this node asks NATS for: what its clients want, counted, no subject that a wider one covers already, and
 * everything of a proxy where that would be too many. What is asked for is never less than what is wanted.
 */

export interface SubjectInterest {
  /** Counts. Answers whether NATS has to be asked for something new. */
  add(subject: string): boolean;
  /** One that was added. */
  delete(subject: string): void;
  /** Subscriptions at NATS. */
  readonly size: number;
}

export interface InterestOptions {
  /** Subjects that are asked for one by one. */
  readonly max: number;
  /** What gets everything. */
  readonly everything: string;
  readonly subscribe: (subject: string) => () => void;
}

interface Wide {
  /** Wanted subjects that this one serves. */
  readonly covered: Set<string>;
}

interface Node {
  readonly children: Map<string, Node>;
  isEnd: boolean;
}

export function createSubjectInterest({ max, everything, subscribe }: InterestOptions): SubjectInterest {
  const counts = new Map<string, number>();
  const active = new Map<string, () => void>();
  /** The active ones with wildcards. */
  const wide = new Map<string, Wide>();
  const coveredBy = new Map<string, string>();
  const root = createNode();
  let isCollapsed = false;

  function activate(subject: string): void {
    active.set(subject, subscribe(subject));
    if (!isWide(subject)) return;
    wide.set(subject, { covered: new Set() });
    insert(root, subject);
  }

  function deactivate(subject: string): void {
    active.get(subject)?.();
    active.delete(subject);
  }

  function place(subject: string): boolean {
    const by = isCollapsed ? everything : findCover(root, subject.split("."), 0, []);
    if (by === undefined || by === subject) {
      activate(subject);
      return true;
    }
    wide.get(by)?.covered.add(subject);
    coveredBy.set(subject, by);
    return false;
  }

  /** One subscription for all: NATS sends more, and looks for it in less. */
  function collapse(): void {
    isCollapsed = true;
    const before = [...active.keys()];
    const served = wide.get(everything) ?? { covered: new Set<string>() };
    if (!active.has(everything)) activate(everything);
    const all = wide.get(everything) ?? served;
    for (const subject of before) {
      if (subject === everything) continue;
      for (const narrow of wide.get(subject)?.covered ?? []) {
        all.covered.add(narrow);
        coveredBy.set(narrow, everything);
      }
      wide.delete(subject);
      deactivate(subject);
      all.covered.add(subject);
      coveredBy.set(subject, everything);
    }
    root.children.clear();
    insert(root, everything);
  }

  function expand(): void {
    isCollapsed = false;
    root.children.clear();
    const served = wide.get(everything)?.covered ?? new Set();
    const isWanted = counts.has(everything);
    if (isWanted) {
      insert(root, everything);
      return;
    }
    const end = active.get(everything);
    active.delete(everything);
    wide.delete(everything);
    // Wildcards first, which serve others.
    for (const subject of [...served].sort((a, b) => Number(isWide(b)) - Number(isWide(a)))) {
      coveredBy.delete(subject);
      place(subject);
    }
    end?.();
  }

  return {
    add(subject) {
      const count = counts.get(subject) ?? 0;
      counts.set(subject, count + 1);
      if (count > 0) return false;
      // It is there for all of them, or for what it covers.
      if (active.has(subject)) return false;
      const isNew = place(subject);
      if (!isCollapsed && active.size > max) collapse();
      return isNew;
    },
    delete(subject) {
      const count = counts.get(subject);
      if (count === undefined) return;
      if (count > 1) {
        counts.set(subject, count - 1);
        return;
      }
      counts.delete(subject);
      const by = coveredBy.get(subject);
      if (by !== undefined) {
        coveredBy.delete(subject);
        wide.get(by)?.covered.delete(subject);
      } else if (!(isCollapsed && subject === everything)) {
        const served = wide.get(subject)?.covered;
        wide.delete(subject);
        if (isWide(subject)) remove(root, subject);
        const end = active.get(subject);
        active.delete(subject);
        // What it served is asked for before it goes, so that nothing is missed between.
        for (const narrow of served ?? []) {
          coveredBy.delete(narrow);
          place(narrow);
        }
        end?.();
      }
      if (!isCollapsed && active.size > max) collapse();
      if (isCollapsed && counts.size < max * 0.8) expand();
    },
    get size() {
      return active.size;
    },
  };
}

function isWide(subject: string): boolean {
  return subject.includes("*") || subject.endsWith(">");
}

function createNode(): Node {
  return { children: new Map(), isEnd: false };
}

function insert(root: Node, subject: string): void {
  let node = root;
  for (const token of subject.split(".")) {
    let child = node.children.get(token);
    if (!child) node.children.set(token, (child = createNode()));
    node = child;
  }
  node.isEnd = true;
}

function remove(root: Node, subject: string): void {
  const path: [node: Node, token: string][] = [];
  let node = root;
  for (const token of subject.split(".")) {
    const child = node.children.get(token);
    if (!child) return;
    path.push([node, token]);
    node = child;
  }
  node.isEnd = false;
  for (const [parent, token] of path.toReversed()) {
    const child = parent.children.get(token);
    if (!child || child.isEnd || child.children.size > 0) return;
    parent.children.delete(token);
  }
}

/** One that is there and gets all that the subject gets. */
function findCover(node: Node, tokens: readonly string[], at: number, path: readonly string[]): string | undefined {
  const token = tokens[at];
  if (token === undefined) return node.isEnd ? path.join(".") : undefined;
  if (node.children.get(">")?.isEnd) return [...path, ">"].join(".");
  for (const each of token === "*" || token === ">" ? [token] : [token, "*"]) {
    const child = node.children.get(each);
    const found = child && findCover(child, tokens, at + 1, [...path, each]);
    if (found !== undefined) return found;
  }
  return undefined;
}
