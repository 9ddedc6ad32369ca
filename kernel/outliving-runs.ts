/** Runs that outlive their connection, and that a stop waits for: wills, Disconnect pipelines and presence. */
import type { Outcome } from "./outcome.ts";
import type { Done, Job } from "./pipeline.ts";

export interface OutlivingRuns {
  /** @param speak calls what it gets when it is over */
  outlive(speak: (said: () => void) => void): void;
  /** @param ended hears how the run ended, once */
  run(job: Job, ended: (outcome: Outcome) => void): void;
  /** Resolves when none is under way; to be called once. */
  over(): Promise<void>;
}

/** @param run answers at once, or calls `done` later */
export function createOutlivingRuns(run: (job: Job, done: Done<Job>) => Outcome | undefined): OutlivingRuns {
  let underWay = 0;
  let quiet: (() => void) | undefined;

  function outlive(speak: (said: () => void) => void): void {
    underWay++;
    speak(() => {
      if (--underWay === 0) quiet?.();
    });
  }

  return {
    outlive,
    run(job, ended) {
      outlive((said) => {
        const settle = (outcome: Outcome): void => {
          ended(outcome);
          said();
        };
        const outcome = run(job, settle);
        if (outcome) settle(outcome);
      });
    },
    async over() {
      if (underWay > 0) await new Promise<void>((resolve) => (quiet = resolve));
    },
  };
}
