/** What the command line logs with; the only importer of pino. */
import { type DestinationStream, type Logger, pino } from "pino";

/** @param fields of every line */
export async function createLog(
  o: { readonly isTTY: boolean; readonly colors: boolean },
  fields?: object,
): Promise<Logger> {
  const log = pino({ timestamp: pino.stdTimeFunctions.isoTime }, await streamOf(o));
  return fields ? log.child(fields) : log;
}

async function streamOf({ isTTY, colors }: { isTTY: boolean; colors: boolean }): Promise<DestinationStream> {
  if (!isTTY) return pino.destination({ dest: 1, sync: true });
  const { default: pretty } = await import("pino-pretty");
  return pretty({ colorize: colors, ignore: "pid,hostname", translateTime: "SYS:HH:MM:ss.l", sync: true });
}
