/** The kinds of this package, for programs; the gateway imports each kind's own entry. */
export { default as mqttClientAuth } from "./mqtt-client-auth.ts";
export { default as connectControl } from "./connect-control.ts";
