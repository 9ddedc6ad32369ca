/**
 * What is published is JavaScript: Node does not strip types under node_modules. In the workspace every manifest names
 * its TypeScript; when a package is packed, the names become those of what `npm run build` has made of it in dist/.
 * JSON schemas stay where they are. The lockfile holds this file's checksum: after a change here,
 * `npx pnpm@10.34.9 install --lockfile-only --no-frozen-lockfile` brings it up to date.
 */
const { existsSync, mkdirSync, writeFileSync } = require("node:fs");
const { join } = require("node:path");

/** `./x.ts` -> `./dist/x.js`, at any depth; what is not a path of a TypeScript file stays as it is. */
function toBuilt(value, dir, extension = ".js") {
  if (typeof value === "string") {
    const match = /^(?:\.\/)?(?!dist\/)(.+)(?<!\.d)\.ts$/.exec(value);
    if (!match) return value;
    const built = `./dist/${match[1]}${extension}`;
    if (!existsSync(join(dir, built)))
      throw new Error(`${dir}: ${built}, for ${value}, is missing: npm run build makes it`);
    return built;
  }
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, each]) => [key, toBuilt(each, dir, key === "types" ? ".d.ts" : extension)]),
  );
}

/**
 * The distribution is the workspace's root. It holds no code, so its bin, which is the kernel's in the workspace, becomes a
 * file that runs the kernel's. `private` keeps it from being published otherwise than packed.
 */
function packDistribution(manifest, dir) {
  const packed = { ...manifest, bin: { sluice: "./dist/sluice.js" } };
  for (const field of ["private", "scripts", "devDependencies", "packageManager"]) delete packed[field];
  mkdirSync(join(dir, "dist"), { recursive: true });
  writeFileSync(join(dir, "dist/sluice.js"), '#!/usr/bin/env node\nimport "@sluice/kernel/cli";\n', { mode: 0o755 });
  return packed;
}

function beforePacking(manifest, dir) {
  if (manifest.name === "sluice") return packDistribution(manifest, dir);
  const packed = { ...manifest };
  // Where it is installed, `sluice` is the distribution's.
  if (manifest.name === "@sluice/kernel") delete packed.bin;
  for (const field of ["exports", "bin", "main"]) {
    if (field in packed) packed[field] = toBuilt(packed[field], dir);
  }
  if ("types" in packed) packed.types = toBuilt(packed.types, dir, ".d.ts");
  // Entries and commands; a schema's path is no TypeScript's.
  if ("sluice" in packed) packed.sluice = toBuilt(packed.sluice, dir);
  packed.files = ["dist", "!dist/**/*.tsbuildinfo", "schema.json", "*.schema.json", "template"];
  return packed;
}

module.exports = { hooks: { beforePacking } };
