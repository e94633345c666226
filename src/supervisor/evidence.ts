// The files that are kept of a simulated run that has failed: its trace, its schedule, and what the handler has written.

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { TraceWriter } from '../trace/writer.js';

/** The folder of a failed run, in the folder that the caller has named. */
const FOLDER = 'random-guests';
const TRACE = 'guest.trace';

/** What is kept besides the trace. */
export interface EvidenceTexts {
  readonly reason: string;
  readonly schedule: readonly string[];
  readonly stdout: string;
  readonly stderr: string;
}

export class Evidence {
  readonly folder: string;
  readonly trace: string;
  /** Why something could not be kept. The check goes on without it. */
  failure: string | undefined;

  /** `root`: the folder that the caller has named; it is made if it is missing. */
  constructor(root: string) {
    this.folder = join(root, FOLDER);
    this.trace = join(this.folder, TRACE);
    this.#attempt(() => mkdirSync(this.folder, { recursive: true }));
  }

  /** Records a run, in place of one that was recorded before. `about`: notes for the trace's description. */
  record<T>(about: Record<string, unknown>, run: (writer: TraceWriter | undefined) => T): T {
    const warn = (message: string): void => {
      this.failure ??= message;
    };
    const writer = this.#attempt(() => TraceWriter.toFile(this.trace, { contents: 'full', about, warn }));
    try {
      return run(writer);
    } finally {
      writer?.close();
    }
  }

  keep({ reason, schedule, stdout, stderr }: EvidenceTexts): void {
    const files = {
      'reason.txt': `${reason}\n`,
      'schedule.txt': `${schedule.join('\n')}\n`,
      'handler.stdout.txt': stdout,
      'handler.stderr.txt': stderr,
    };
    for (const [name, text] of Object.entries(files))
      this.#attempt(() => writeFileSync(join(this.folder, name), text));
  }

  #attempt<T>(act: () => T): T | undefined {
    if (this.failure !== undefined) return undefined;
    try {
      return act();
    } catch (error) {
      this.failure = (error as Error).message;
      return undefined;
    }
  }
}
