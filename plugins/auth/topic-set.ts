/** Banned topics: exact ones and MQTT topic filters. They come from the config, so they are few. */
export interface TopicSet {
  /** Does this topic name lie in the set? */
  has(topic: string): boolean;
  /** Could a subscription to this topic filter receive a topic of the set? */
  meets(topicFilter: string): boolean;
}

export function createTopicSet(entries: readonly string[]): TopicSet {
  const exact = new Set(entries.filter((entry) => !isWild(entry)));
  const wild = entries.filter(isWild).map(levelsOf);
  const all = entries.map(levelsOf);

  function has(topic: string): boolean {
    if (exact.has(topic)) return true;
    if (wild.length === 0) return false;
    const levels = levelsOf(topic);
    return wild.some((entry) => overlap(entry, levels));
  }

  function meets(topicFilter: string): boolean {
    const subscribed = withoutShare(topicFilter);
    if (!isWild(subscribed)) return has(subscribed);
    const levels = levelsOf(subscribed);
    return all.some((entry) => overlap(entry, levels));
  }

  return { has, meets };
}

/** `$share/group/filter` receives what `filter` would. */
export function withoutShare(topicFilter: string): string {
  if (!topicFilter.startsWith("$share/")) return topicFilter;
  const end = topicFilter.indexOf("/", "$share/".length);
  return end < 0 ? topicFilter : topicFilter.slice(end + 1);
}

/** Why an entry is no topic filter [MQTT-4.7.1-2] [MQTT-4.7.1-3]; undefined where it is one. */
export function topicFilterProblem(entry: string): string | undefined {
  const levels = levelsOf(entry);
  const wrongHash = levels.findIndex(
    (level, index) => level.includes("#") && (level !== "#" || index < levels.length - 1),
  );
  if (wrongHash >= 0) return `${JSON.stringify(entry)}: # must be a whole level, and the last one`;
  if (levels.some((level) => level.includes("+") && level !== "+")) {
    return `${JSON.stringify(entry)}: + must be a whole level`;
  }
  return undefined;
}

function isWild(topicFilter: string): boolean {
  return /[+#]/.test(topicFilter);
}

function levelsOf(topicFilter: string): string[] {
  return topicFilter.split("/");
}

/** True where some topic name matches both. A topic name is a filter without wildcards. */
function overlap(a: readonly string[], b: readonly string[]): boolean {
  for (let index = 0; ; index++) {
    const left = a[index];
    const right = b[index];
    // A wildcard on the first level does not match names that begin with $ [MQTT-4.7.2-1].
    if (index === 0 && ((isWildLevel(left) && isReserved(right)) || (isWildLevel(right) && isReserved(left))))
      return false;
    // # matches the rest, and the parent level too [MQTT-4.7.1-2].
    if (left === "#" || right === "#") return true;
    if (left === undefined || right === undefined) return left === right;
    if (left !== right && left !== "+" && right !== "+") return false;
  }
}

function isWildLevel(level: string | undefined): boolean {
  return level === "+" || level === "#";
}

function isReserved(level: string | undefined): boolean {
  return level?.startsWith("$") ?? false;
}
