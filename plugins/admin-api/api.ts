/** The commands' way to a running gateway: its HTTP API. */
import type { CommandIo } from "@sluice/kernel";

/** Exit codes of the commands here; 130 is a shell's for Ctrl-C. */
export const exit = { done: 0, refused: 1, usage: 2, unreachable: 3, interrupted: 130 } as const;

/** Ends a command with this exit code and its message on stderr. */
export interface CommandFailure extends Error {
  readonly exitCode: number;
}

export function failure(exitCode: number, message: string): CommandFailure {
  return Object.assign(new Error(message), { exitCode });
}

export interface Api {
  readonly url: string;
  /** The parsed answer to a 200 or 201. Fails with exit code 3 where nothing answers, and with 1 for any other status. */
  request(
    method: "GET" | "POST" | "PUT" | "DELETE",
    path: string,
    body?: object,
    headers?: Readonly<Record<string, string>>,
  ): Promise<unknown>;
  /** The answer to a GET as it is; fails as `request` does. */
  text(path: string): Promise<string>;
}

export const apiOption = `  --api URL           the gateway's HTTP API (default: $SLUICE_API, else http://127.0.0.1:2381);
                      $SLUICE_API_KEY, if set, is sent as "Authorization: Bearer";
                      $NODE_EXTRA_CA_CERTS names a file of CAs to trust for https`;

export const apiHelp = `${apiOption}
  --json              print the API's answer as JSON

Exit codes: 0 done, 1 refused by the gateway, 2 wrong usage, 3 the gateway can't be reached`;

const answerMs = 30_000;

/** `option`: the value of --api. */
export function openApi(option: string | undefined, io: CommandIo): Api {
  const given = option ?? (io.env["SLUICE_API"] || "http://127.0.0.1:2381");
  const base = parseBase(given, option === undefined ? "SLUICE_API" : "--api");
  const key = io.env["SLUICE_API_KEY"];

  async function send(
    method: string,
    path: string,
    body: object | undefined,
    headers: Readonly<Record<string, string>> | undefined,
  ): Promise<string> {
    const timeout = AbortSignal.timeout(answerMs);
    let response: Response;
    let text: string;
    try {
      response = await fetch(`${base}/apis/v2${path}`, {
        method,
        headers: {
          accept: "application/json",
          ...(body && { "content-type": "application/json" }),
          ...(key && { authorization: `Bearer ${key}` }),
          ...headers,
        },
        ...(body && { body: JSON.stringify(body) }),
        // A redirect would carry the key to wherever it points.
        redirect: "manual",
        signal: AbortSignal.any([io.signal, timeout]),
      });
      text = await response.text();
    } catch (error) {
      const why = timeout.aborted ? `no answer within ${answerMs / 1000} s` : reasonOf(error);
      if (isDistrust(error)) {
        throw failure(
          exit.unreachable,
          `${base} shows a certificate that is not trusted: ${why}. Name the file of its issuer: NODE_EXTRA_CA_CERTS=ca.pem sluice ...`,
        );
      }
      throw failure(
        exit.unreachable,
        `can't reach a gateway at ${base}: ${why}. Is it running (\`sluice run\`)? Name another one with --api URL or SLUICE_API.`,
      );
    }
    if (response.status !== 200 && response.status !== 201) {
      const why = messageOf(parse(text)) ?? response.statusText;
      throw failure(exit.refused, `${base} answered ${response.status}: ${why}`);
    }
    return text;
  }

  return {
    url: base,
    text: (path) => send("GET", path, undefined, { accept: "*/*" }),
    async request(method, path, body, headers) {
      const answer = parse(await send(method, path, body, headers));
      if (answer === undefined)
        throw failure(exit.refused, `${base} did not answer with JSON: is it a Sluice gateway?`);
      return answer;
    },
  };
}

function parseBase(given: string, from: string): string {
  const url = URL.canParse(given) ? new URL(given) : undefined;
  if (!url || !/^https?:$/.test(url.protocol)) {
    throw failure(exit.usage, `${from} must be a URL such as http://127.0.0.1:2381, not "${given}"`);
  }
  if (url.username !== "" || url.password !== "" || url.search !== "" || url.hash !== "") {
    throw failure(
      exit.usage,
      `${from} must be a URL without credentials, query and fragment: use SLUICE_API_KEY for a key`,
    );
  }
  return url.origin + url.pathname.replace(/\/+$/, "");
}

/** fetch says "fetch failed" and hides why in `cause`, for a host of several addresses one level deeper. */
function reasonOf(error: unknown): string {
  const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error;
  const inner: unknown = cause instanceof AggregateError ? cause.errors[0] : cause;
  return inner instanceof Error ? inner.message : String(inner);
}

/** OpenSSL's verdicts on a chain of certificates. */
function isDistrust(error: unknown): boolean {
  const cause = error instanceof Error ? error.cause : undefined;
  const code = cause instanceof Error && "code" in cause ? String(cause.code) : "";
  return /SELF_SIGNED|UNABLE_TO_(VERIFY|GET_ISSUER)|CERT_(UNTRUSTED|HAS_EXPIRED|SIGNATURE_FAILURE)/.test(code);
}

function messageOf(answer: unknown): string | undefined {
  if (typeof answer !== "object" || answer === null || !("message" in answer)) return undefined;
  if (typeof answer.message !== "string") return undefined;
  const problems = "problems" in answer && Array.isArray(answer.problems) ? answer.problems : [];
  const lines = (problems as readonly { where: string; message: string }[]).map(
    ({ where, message }) => `\n  ${where}: ${message}`,
  );
  return lines.length === 0 ? answer.message : `the change has problems, and nothing was changed${lines.join("")}`;
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
