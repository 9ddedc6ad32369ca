// @ts-check

/**
 * @typedef {{ readonly path: string, readonly type?: "string" | "number" | "boolean" | "object" | "array" }} Field
 * @type {import("@sluice/kernel").FilterKind<{ readonly fields: readonly Field[] }>}
 */
const kind = {
  kind: "JsonField",
  packets: ["Publish"],
  results: ["notJson", "fieldMissing", "fieldInvalid"],
  // No retry would mend them. A jumpIf sends them where they can be looked at.
  discards: ["notJson", "fieldMissing", "fieldInvalid"],

  // What the schema can't say.
  validate({ fields }) {
    const paths = fields.map(({ path }) => path);
    return paths.flatMap((path, index) =>
      paths.indexOf(path) < index
        ? [{ field: ["fields", index, "path"], message: `"${path}" is listed twice: remove one` }]
        : [],
    );
  },

  create({ fields }) {
    // Taken apart once, not for every packet.
    const wanted = fields.map(({ path, type }) => ({ names: path.split("."), type }));
    return {
      handle(ctx) {
        if (ctx.type !== "Publish") return;
        const payload = parse(ctx.packet.payload);
        if (typeOf(payload) !== "object") return "notJson";
        for (const { names, type } of wanted) {
          const value = names.reduce(memberOf, payload);
          if (value === undefined) return "fieldMissing";
          if (type !== undefined && typeOf(value) !== type) return "fieldInvalid";
        }
      },
    };
  },
};
export default kind;

/** @param {Buffer} payload @returns {unknown} undefined where it is not JSON */
function parse(payload) {
  try {
    return JSON.parse(payload.toString());
  } catch {
    return undefined;
  }
}

/** Its own members only: every object has a `constructor`. @param {any} value @param {string} name */
function memberOf(value, name) {
  return typeOf(value) === "object" && Object.hasOwn(value, name) ? value[name] : undefined;
}

/** @param {unknown} value */
function typeOf(value) {
  if (value === null) return "null";
  return Array.isArray(value) ? "array" : typeof value;
}
