/**
 * Topic names and topic filters as NATS subjects: one to one, so that a subscription to a filter's subject gets exactly
 * the topics that the filter matches, and a topic is read back from its subject.
 *
 * A topic is its plane (`d` where it begins with `$`, so that no wildcard of the other plane reaches it [MQTT-4.7.2-1],
 * else `n`), its levels, and a last token `~`. `+` is `*`; `#` is `>`, which needs a token: the last one, so that
 * `sport/#` is `n.sport.>` and gets `n.sport.~` too. What a token can't hold is escaped with `~`.
 */

/**
 * Of the encoded form, plane and last token included. A server drops a connection that names a subject of some 4 KB, and
 * with it every client of the node.
 */
export const maxSubjectBytes = 1024;
export const maxLevels = 32;

const plain = /^[^.\s*>~\p{Cc}]+$/u;
const special = /[.\s*>~\p{Cc}]/gu;
const letters = new Map([
  [".", "d"],
  [" ", "s"],
  ["*", "a"],
  [">", "g"],
  ["~", "~"],
]);
const characters = new Map([...letters].map(([character, letter]) => [letter, character]));
const end = "~";
const emptyLevel = "~0";

/**
 * Why a topic name or topic filter can't be carried by NATS; undefined = it can. What is refused here must never be sent.
 */
export function subjectProblem(topic: string): string | undefined {
  const levels = topic.split("/").length;
  if (levels > maxLevels) return `it has ${levels} levels, and a cluster carries ${maxLevels}`;
  // Most are far shorter, whatever they hold: a UTF-16 unit takes at most five bytes (`~u2028`: six, of three).
  if (topic.length * 6 + 8 <= maxSubjectBytes) return undefined;
  const bytes = Buffer.byteLength(encode(topic, escapeLevel));
  return bytes > maxSubjectBytes
    ? `it takes ${bytes} bytes as a subject, and a cluster carries ${maxSubjectBytes}`
    : undefined;
}

/** `a/b` to `n.a.b.~`. The topic name is a valid one without {@link subjectProblem}. */
export function topicSubject(topic: string): string {
  return encode(topic, escapeLevel);
}

/** `a/+/#` to `n.a.*.>`. The topic filter is a valid one without {@link subjectProblem}, and not a shared subscription. */
export function filterSubject(topicFilter: string): string {
  if (topicFilter === "#") return "n.>";
  if (topicFilter.endsWith("/#")) return `${encodeLevels(topicFilter.slice(0, -2), wildcardOrEscape)}.>`;
  return encode(topicFilter, wildcardOrEscape);
}

/** The topic name of a {@link topicSubject}. */
export function subjectTopic(subject: string): string {
  const text = subject.slice(2, -(end.length + 1));
  return text.includes("~") ? text.split(".").map(unescape).join("/") : text.replaceAll(".", "/");
}

/** Whether every topic that has `subject` has `wider` too: both are filters' subjects. */
export function covers(wider: string, subject: string): boolean {
  const [outer, inner] = [wider.split("."), subject.split(".")];
  for (const [at, token] of outer.entries()) {
    const other = inner[at];
    if (token === ">") return other !== undefined;
    if (other === undefined || other === ">") return false;
    if (token !== "*" && token !== other) return false;
  }
  return outer.length === inner.length;
}

function encode(topic: string, token: (level: string) => string): string {
  return `${encodeLevels(topic, token)}.${end}`;
}

function encodeLevels(topic: string, token: (level: string) => string): string {
  const plane = topic.startsWith("$") ? "d" : "n";
  return `${plane}.${topic.split("/").map(token).join(".")}`;
}

function wildcardOrEscape(level: string): string {
  return level === "+" ? "*" : escapeLevel(level);
}

/** One level of a topic, or any text, as one token. */
export function escapeLevel(level: string): string {
  if (level === "") return emptyLevel;
  if (plain.test(level)) return level;
  return level.replace(special, (character) => {
    const letter = letters.get(character);
    if (letter !== undefined) return `~${letter}`;
    const code = character.charCodeAt(0).toString(16);
    return code.length <= 2 ? `~x${code.padStart(2, "0")}` : `~u${code.padStart(4, "0")}`;
  });
}

function unescape(token: string): string {
  if (token === emptyLevel) return "";
  return token.replace(/~(x([0-9a-f]{2})|u([0-9a-f]{4})|.)/gu, (_, letter: string, short?: string, long?: string) => {
    const code = short ?? long;
    return code === undefined ? (characters.get(letter) ?? "") : String.fromCharCode(Number.parseInt(code, 16));
  });
}
