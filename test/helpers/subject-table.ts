/** Subjects with wildcards as a NATS server has them, for what it would send where. */
export interface SubjectTable {
  /** Does any of them match this subject, which has no wildcards? */
  matches(subject: string): boolean;
}

interface Node {
  readonly children: Map<string, Node>;
  isEnd: boolean;
}

export function createSubjectTable(subjects: Iterable<string>): SubjectTable {
  const root: Node = { children: new Map(), isEnd: false };
  for (const subject of subjects) {
    let node = root;
    for (const token of subject.split(".")) {
      let child = node.children.get(token);
      if (!child) node.children.set(token, (child = { children: new Map(), isEnd: false }));
      node = child;
    }
    node.isEnd = true;
  }
  return { matches: (subject) => found(root, subject.split("."), 0) };
}

function found(node: Node, tokens: readonly string[], at: number): boolean {
  const token = tokens[at];
  if (token === undefined) return node.isEnd;
  if (node.children.get(">")?.isEnd) return true;
  return [token, "*"].some((each) => {
    const child = node.children.get(each);
    return child !== undefined && found(child, tokens, at + 1);
  });
}
