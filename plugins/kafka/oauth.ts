/** Tokens for SASL OAUTHBEARER: a fixed one, or by OAuth 2.0's client credentials grant (RFC 6749, 4.4). */
import type { SaslOptions } from "./config.ts";

/** Seconds before its end that a token is no longer used. */
const marginSeconds = 30;

/** kafkajs asks at each connection and before a session ends. Rejects with one line, without secrets. */
export function createTokenSource(sasl: SaslOptions, timeoutMs: number): () => Promise<{ value: string }> {
  const { token, tokenEndpoint = "", clientId = "", clientSecret = "", scope } = sasl;
  if (token !== undefined) return () => Promise.resolve({ value: token });
  let known: { value: string; until: number } | undefined;

  async function fetchToken(): Promise<{ value: string; until: number }> {
    const credentials = [clientId, clientSecret].map(encodeURIComponent).join(":");
    const response = await fetch(tokenEndpoint, {
      method: "POST",
      headers: { authorization: `Basic ${Buffer.from(credentials).toString("base64")}` },
      body: new URLSearchParams({ grant_type: "client_credentials", ...(scope === undefined ? {} : { scope }) }),
      signal: AbortSignal.timeout(timeoutMs),
    });
    if (!response.ok) throw new Error(`${tokenEndpoint} answered ${response.status}`);
    const answer = (await response.json()) as { access_token?: unknown; expires_in?: unknown };
    if (typeof answer.access_token !== "string") throw new Error(`${tokenEndpoint} answered without an access_token`);
    const seconds = typeof answer.expires_in === "number" ? answer.expires_in : 60;
    return { value: answer.access_token, until: performance.now() + (seconds - marginSeconds) * 1000 };
  }

  return async () => {
    if (!known || performance.now() > known.until) {
      try {
        known = await fetchToken();
      } catch (error) {
        const cause = error instanceof Error && error.cause instanceof Error ? `: ${error.cause.message}` : "";
        throw new Error(`no token: ${error instanceof Error ? error.message : String(error)}${cause}`, {
          cause: error,
        });
      }
    }
    return { value: known.value };
  };
}
