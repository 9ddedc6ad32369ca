/** JSON Schema (draft 2020-12) compiled into functions that fill in defaults and explain each fault in plain words. */
import { Ajv2020, type ErrorObject } from "ajv/dist/2020.js";
import { didYouMean } from "./suggest.ts";

/** Keys and indexes from the root of a value. */
export type Path = readonly (string | number)[];

export interface Fault {
  readonly path: Path;
  /** What is wrong and what to do, without the path. */
  readonly message: string;
}

/**
 * Applies defaults to `value` in place and returns all its faults. Their messages show neither what the schema marks as
 * `writeOnly` nor what `hides` answers true for.
 */
export type Validate = (value: unknown, hides?: (path: Path) => boolean) => Fault[];

/** Throws where the schema itself is faulty. A schema that reads the same is compiled once. */
export type Compile = (schema: object) => Validate;

/** Compiled schemas that are remembered; beyond, all are forgotten and those in use compiled anew. */
const maxRemembered = 1000;

export function schemaCompiler(): Compile {
  const remembered = new Map<string, Validate>();
  const ajv = new Ajv2020({
    allErrors: true,
    useDefaults: true,
    verbose: true,
    // A typo in a plugin's schema is the author's to know; what merely looks odd to ajv is not.
    strictTypes: false,
    strictTuples: false,
    strictRequired: false,
    // Formats are hints for editors: the kernel has no business refusing a plugin for one it does not know.
    validateFormats: false,
    logger: false,
  });
  return (schema) => {
    // By its text: each reading of the plugins' files makes new objects.
    const text = JSON.stringify(schema);
    const known = remembered.get(text);
    if (known) return known;
    const check = ajv.compile(schema);
    // Two plugins may well use one $id; the compiled function needs ajv's cache no more.
    ajv.removeSchema(schema);
    const validate: Validate = (value, hides = () => false) => (check(value) ? [] : explain(check.errors ?? [], hides));
    if (remembered.size >= maxRemembered) remembered.clear();
    remembered.set(text, validate);
    return validate;
  };
}

function explain(errors: readonly ErrorObject[], hides: (path: Path) => boolean): Fault[] {
  const faults = new Map<string, Fault>();
  for (const error of withoutBranches(errors)) {
    const fault = toFault(error, hides);
    if (fault !== undefined) faults.set(JSON.stringify([fault.path, fault.message]), fault);
  }
  return [...faults.values()];
}

/** Of an anyOf or oneOf, keep the faults of the one branch that was meant, or else only the fault of the whole. */
function withoutBranches(errors: readonly ErrorObject[]): ErrorObject[] {
  const left = new Set(errors);
  for (const whole of errors) {
    if ((whole.keyword !== "anyOf" && whole.keyword !== "oneOf") || !left.has(whole)) continue;
    const branches = whole.schema as { $ref?: string }[];
    const belongs = branches.map((branch, index) =>
      [...left].filter(
        (error) =>
          error !== whole &&
          error.instancePath.startsWith(whole.instancePath) &&
          (error.schemaPath.startsWith(`${whole.schemaPath}/${index}/`) ||
            (branch.$ref !== undefined && error.schemaPath.startsWith(`${branch.$ref}/`))),
      ),
    );
    const meant = belongs.filter(
      (branch) =>
        branch.length > 0 &&
        !branch.some(
          (error) =>
            error.instancePath === whole.instancePath && ["type", "const", "enum", "required"].includes(error.keyword),
        ),
    );
    for (const error of belongs.flat()) left.delete(error);
    if (meant.length === 1) {
      left.delete(whole);
      for (const error of meant[0]!) left.add(error);
    }
  }
  return [...left];
}

function toFault(error: ErrorObject, hides: (path: Path) => boolean): Fault | undefined {
  const path = toPath(error.instancePath, error);
  const { params, parentSchema = {} } = error;
  const secret = parentSchema["writeOnly"] === true || hides(path);
  const got = secret ? "what is given" : show(error.data);
  switch (error.keyword) {
    case "additionalProperties":
    case "unevaluatedProperties": {
      const key = String(params["additionalProperty"] ?? params["unevaluatedProperty"]);
      const known = Object.keys((parentSchema["properties"] ?? {}) as object);
      const hint = didYouMean(key, known);
      const options = known.length === 0 ? "; no option is known here" : `; known options: ${known.join(", ")}`;
      return { path: [...path, key], message: `unknown option${hint === "" ? options : hint}` };
    }
    case "required": {
      const key = String(params["missingProperty"]);
      const properties = (parentSchema["properties"] ?? {}) as Record<string, { description?: string } | undefined>;
      const description = properties[key]?.description?.split(/(?<=\.)\s/)[0];
      return { path: [...path, key], message: `is missing${description === undefined ? "" : `: ${description}`}` };
    }
    case "type": {
      const types = [params["type"] as string | string[]].flat();
      const quote =
        types.includes("string") && ["number", "boolean"].includes(typeof error.data) ? " (put it in quotes)" : "";
      const bool =
        types.includes("boolean") && /^(yes|no|on|off)$/i.test(String(error.data)) ? " (write true or false)" : "";
      return { path, message: `must be ${types.map(typeName).join(" or ")}, not ${got}${quote}${bool}` };
    }
    case "enum": {
      const allowed = (params["allowedValues"] as unknown[]).map(show).join(", ");
      const names = (params["allowedValues"] as unknown[]).filter((value) => typeof value === "string");
      const hint = typeof error.data === "string" && !secret ? didYouMean(error.data, names) : "";
      return { path, message: `must be one of ${allowed}, not ${got}${hint}` };
    }
    case "const":
      return { path, message: `must be ${show(params["allowedValue"])}, not ${got}` };
    case "minimum":
      return { path, message: `must be at least ${params["limit"]}, not ${got}` };
    case "maximum":
      return { path, message: `must be at most ${params["limit"]}, not ${got}` };
    case "exclusiveMinimum":
      return { path, message: `must be more than ${params["limit"]}, not ${got}` };
    case "exclusiveMaximum":
      return { path, message: `must be less than ${params["limit"]}, not ${got}` };
    case "multipleOf":
      return { path, message: `must be a multiple of ${params["multipleOf"]}, not ${got}` };
    case "minLength":
      return {
        path,
        message: params["limit"] === 1 ? "must not be empty" : `must have at least ${params["limit"]} characters`,
      };
    case "maxLength":
      return { path, message: `must have at most ${params["limit"]} characters` };
    case "minItems":
    case "minProperties":
      return {
        path,
        message:
          params["limit"] === 1
            ? "must not be empty: give at least one"
            : `must have at least ${params["limit"]} entries`,
      };
    case "maxItems":
    case "maxProperties":
      return { path, message: `must have at most ${params["limit"]} entries` };
    case "uniqueItems": {
      const [first = 0, second = 0] = [Number(params["i"]), Number(params["j"])].sort((a, b) => a - b);
      return { path: [...path, second], message: `says the same as entry ${first}: remove one` };
    }
    case "pattern":
      return { path, message: `must match ${params["pattern"]}; ${got} does not` };
    case "propertyNames":
      return { path: [...path, String(params["propertyName"])], message: "is not allowed as a key here" };
    case "anyOf":
    case "oneOf":
      return { path, message: alternatives(error) };
    case "if":
      return undefined; // what `then` or `else` asked for is reported by itself
    default:
      return {
        path,
        message: error.propertyName === undefined ? (error.message ?? "is not valid") : `as a key ${error.message}`,
      };
  }
}

function alternatives(error: ErrorObject): string {
  const branches = error.schema as { type?: string | string[]; required?: string[] }[];
  if (Array.isArray(error.params["passingSchemas"])) return "fits more than one of its possible forms: keep to one";
  const types = branches.flatMap((branch) => branch.type ?? []);
  const wanted = branches.map((branch) => branch.required?.join(" and ")).filter((names) => names !== undefined);
  if (wanted.length === branches.length) return `needs one of: ${wanted.join("; ")}`;
  if (types.length > 0)
    return `must be ${[...new Set(types)].map(typeName).join(" or ")} of the form that its description tells`;
  return "has none of its possible forms: see its description";
}

function toPath(pointer: string, error: ErrorObject): Path {
  const keys = pointer.split("/").slice(1);
  if (error.keyword === "propertyNames" && error.propertyName !== undefined) keys.push(error.propertyName);
  return keys.map((key) => (/^\d+$/.test(key) ? Number(key) : key.replaceAll("~1", "/").replaceAll("~0", "~")));
}

function typeName(type: string): string {
  const names: Record<string, string> = {
    string: "a string",
    integer: "a whole number",
    number: "a number",
    boolean: "true or false",
    array: "a list",
    object: "a map",
    null: "empty",
  };
  return names[type] ?? type;
}

function show(value: unknown): string {
  if (value === null || value === undefined) return "empty";
  if (Array.isArray(value)) return "a list";
  if (typeof value === "object") return "a map";
  const text = JSON.stringify(value);
  return text.length > 60 ? `${text.slice(0, 57)}..."` : text;
}
