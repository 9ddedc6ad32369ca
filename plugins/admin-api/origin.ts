/** Keeps web pages away from an API that may ask for no credentials, without asking anything of other callers. */
import { isIP } from "node:net";
import type { IncomingHttpHeaders } from "node:http";

/** Says why a request is refused, or nothing. */
export type OriginCheck = (headers: IncomingHttpHeaders) => string | undefined;

/**
 * Two doors are shut. A page of another site that posts here: browsers send its `Origin`, which must be this very host.
 * A page whose own name was made to resolve to 127.0.0.1 (DNS rebinding): then `Host` is that name, so while we are
 * bound to loopback only IP addresses, `localhost` and `allowedHosts` are good names.
 */
export function createOriginCheck(bound: string, allowedHosts: readonly string[]): OriginCheck {
  const allowed = new Set(allowedHosts.map((name) => name.toLowerCase()));
  const checksHost = isLoopback(bound);

  function isGoodName(name: string): boolean {
    return isIP(name) !== 0 || name === "localhost" || name.endsWith(".localhost") || allowed.has(name);
  }

  return ({ host, origin }) => {
    if (checksHost && host !== undefined && !isGoodName(nameOf(host))) {
      return "this Host name is not allowed here: use the IP address or localhost, or add the name to AdminAPI's allowedHosts";
    }
    if (origin === undefined) return undefined;
    const authority = origin.slice(origin.indexOf("//") + 2);
    if (authority === host || allowed.has(nameOf(authority))) return undefined;
    return "requests of web pages from other origins are refused";
  };
}

/** Whether only this machine reaches what is bound to it; any other name than localhost may well be the network's. */
export function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || (isIP(host) === 4 && host.startsWith("127."));
}

/** `[::1]:2381` -> `::1`, `LocalHost:80` -> `localhost`. */
function nameOf(authority: string): string {
  const bracketed = /^\[([^\]]*)\]/.exec(authority);
  return bracketed ? bracketed[1]! : authority.replace(/:\d*$/, "").toLowerCase();
}
