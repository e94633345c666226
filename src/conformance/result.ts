// The result of a check of a foreign handler: by scenario, and as a whole. The real suite and the simulated one return
// the same types.

/**
 * `not applicable`: the scenario asks for something that this machine or this handler does not have; `reason` says what.
 */
export type Verdict = 'pass' | 'fail' | 'not applicable';

/** A page with other contents than it should have. */
export interface WrongPage {
  /** Its address in the monitor. */
  readonly address: bigint;
  /** Its offset in the memory file, in bytes. */
  readonly offset: number;
  /** The contents in words: `the bytes of page 17`, `zeros`. */
  readonly expected: string;
  readonly actual: string;
}

/** One scenario's result. */
export interface ScenarioResult {
  readonly scenario: string;
  /** Why the scenario matters, in one sentence. */
  readonly why: string;
  readonly verdict: Verdict;
  /** Why it failed or does not apply, in one sentence. A passed scenario may have a remark here. */
  readonly reason?: string;
  readonly page?: WrongPage;
  /** Lines: what the handler's threads wait for, its exit status, its last lines on stderr, or a schedule. */
  readonly details?: readonly string[];
  /** How often it failed, if it ran more than once. */
  readonly repeats?: { readonly failed: number; readonly of: number };
  /** Repeats the failure (simulated suite). */
  readonly seed?: number;
  /** The folder with the files that were kept of the failure. */
  readonly evidence?: string;
  /** The trace of the run that failed, in that folder (simulated suite): `uffd inspect`, `replay` and `report` read it. */
  readonly trace?: string;
  /** Duration of all its runs, in milliseconds. */
  readonly milliseconds: number;
}

/** The results of all scenarios that ran. */
export interface CheckReport {
  /** The handler's command, with its placeholders. */
  readonly command: readonly string[];
  readonly simulated: boolean;
  readonly results: readonly ScenarioResult[];
}

/** How many results have a verdict. */
export function countOf({ results }: CheckReport, verdict: Verdict): number {
  return results.filter((result) => result.verdict === verdict).length;
}
