/** `sluice plugin`: what its commands are called and take. Each is imported when it is run. */
import type { Subcommand } from "./main.ts";

const json = { flags: "--json", description: "as JSON" };

export const pluginCommands: readonly Subcommand[] = [
  {
    usage: "add <source>",
    description: "install a plugin beside the config, or another version of one that is installed",
    options: [
      {
        flags: "--allow-scripts <package>",
        description: "run the install scripts of this package, which none may otherwise; may be repeated",
        list: true,
      },
    ],
    help: `
<source> is one of
  name, name@1.2.3, name@^1.2.0, name@latest   a package in npm's registry
  ./sluice-stamp-1.0.0.tgz                     a tarball, as npm pack makes it
  ./stamp                                      a folder that has a package.json; it is packed first

It is fetched by npm, checked, imported once in a process of its own and tried with
the config; if anything fails, nothing has changed. plugins.lock lists what is
installed. A running gateway takes it up by itself.

Example:
  sluice plugin add sluice-stamp@^1.0.0
`,
    run: async (cli, args, options) => (await import("./plugin-add.ts")).add(cli, args, options),
  },
  {
    usage: "remove <name>",
    description: "uninstall a plugin that the config does not need",
    options: [{ flags: "--force", description: "also where the config needs it, and will not be valid without it" }],
    run: async (cli, args, options) => (await import("./plugin-remove.ts")).remove(cli, args, options),
  },
  {
    usage: "update [name...]",
    description: "install the newest version that each plugin's source gives, of all or of these",
    help: `
A plugin that was added as name@1.2.3 stays what it is: add another version of it.
`,
    run: async (cli, args, options) => (await import("./plugin-update.ts")).update(cli, args, options),
  },
  {
    usage: "list",
    description: "list the installed kinds, and what in the config is of each",
    options: [json],
    run: async (cli, _, options) => (await import("./plugin-list.ts")).list(cli, options),
  },
  {
    usage: "info <kind>",
    description: "show what a kind is, its options and an example",
    run: async (cli, args, options) => (await import("./plugin-info.ts")).info(cli, args, options),
  },
  {
    usage: "doctor",
    description: "say where plugins are looked for, and why one is not found or not loaded",
    options: [json],
    run: async (cli, _, options) => (await import("./plugin-doctor.ts")).doctor(cli, options),
  },
  {
    usage: "probe <place> <name> <deadline>",
    description: "import all that a package provides, and tell the parent process",
    isHidden: true,
    run: async (_, args) => (await import("./plugin-probe.ts")).probe(args),
  },
];
