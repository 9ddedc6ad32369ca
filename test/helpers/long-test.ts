/** Tests of the long form alone, in a file whose others are in both; the short form must cover the same in a lesser way. */
import { test, type TestContext, type TestOptions } from "node:test";

export const isLong = process.env["SLUICE_TEST_LONG"] === "true";

type Run = (t: TestContext) => void | Promise<void>;

export function longTest(name: string, run: Run, options: TestOptions = {}): void {
  if (isLong) void test(name, options, run);
}
