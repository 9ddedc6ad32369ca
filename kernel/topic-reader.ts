/** The topic name of a PUBLISH from its raw bytes, judged while it is read. */
import { malformed, type Refusal, textProblem } from "./frame.ts";
import { topicNameProblem } from "./topics.ts";

/** The topic name from `at` to `end`; may not be empty. */
export function readTopicName(bytes: Buffer, at: number, end: number): string | Refusal {
  // Mostly it is plain ASCII, of which one look at each byte says all that there is to judge.
  if (at < end && isPlain(bytes, at, end)) return bytes.toString("latin1", at, end);
  const topic = bytes.toString("utf8", at, end);
  // U+FFFD stands for what was not UTF-8, unless the client sent it.
  const fault = topic.includes("\uFFFD") ? textProblem(bytes, at, end) : undefined;
  const problem = fault ?? topicNameProblem(topic);
  return problem === undefined ? topic : malformed(`PUBLISH with a wrong topic name: ${problem}`);
}

/** ASCII without control characters and without the wildcards `#` and `+`. */
function isPlain(bytes: Buffer, from: number, end: number): boolean {
  for (let at = from; at < end; at++) {
    const byte = bytes[at] as number;
    if (byte < 0x20 || byte > 0x7e || byte === 0x23 || byte === 0x2b) return false;
  }
  return true;
}
