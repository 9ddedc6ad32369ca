/** JSON or YAML, as the request's Accept asks. */
import type { ParameterizedContext } from "koa";
import { stringify } from "yaml";

const json = "application/json";
const yamlTypes = ["text/x-yaml", "application/yaml", "application/x-yaml", "text/yaml"];

/** Sets the body: YAML (labelled `text/x-yaml`, as Easegress does) where Accept prefers it to JSON, else JSON. */
export function send(ctx: ParameterizedContext, value: unknown): void {
  // Most callers accept anything: the header is only parsed where YAML is in it.
  if (ctx.req.headers.accept?.includes("yaml")) {
    const preferred = ctx.accepts(json, ...yamlTypes);
    if (preferred !== false && preferred !== json) {
      ctx.set("Content-Type", "text/x-yaml; charset=utf-8");
      ctx.body = stringify(value, { aliasDuplicateObjects: false });
      return;
    }
  }
  ctx.set("Content-Type", "application/json; charset=utf-8");
  ctx.body = JSON.stringify(value);
}
