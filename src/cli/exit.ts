// Exit codes, and how errors are reported. An error with a code is one that the user can act on, so its message is
// enough. Any other error is a bug of this program, and its stack is printed, too.

import { CommanderError } from 'commander';

export const EXIT = { done: 0, failed: 1, usage: 2, interrupted: 130, terminated: 143 } as const;

/** For the help of every command. */
export const EXIT_HELP = `
Exit codes:
  0    success
  1    it failed; the reason is on stderr
  2    an option or an argument is wrong
  130  interrupted (Ctrl-C)
  143  terminated (SIGTERM)
`;

/** A request that cannot be fulfilled, for a reason that the user can act on. */
export class Refusal extends Error {
  readonly code: string = 'ERR_UFFD_REFUSED';
}

/** A wrong argument that is detected only when it is used. */
export class Usage extends Refusal {
  override readonly code = 'ERR_UFFD_USAGE';
}

/** A signal asked the command to end. */
export class Interrupted extends Refusal {
  override readonly code = 'ERR_UFFD_INTERRUPTED';
  readonly exitCode: number;

  constructor(signal: 'SIGINT' | 'SIGTERM') {
    super(signal === 'SIGINT' ? 'interrupted' : 'terminated');
    this.exitCode = signal === 'SIGINT' ? EXIT.interrupted : EXIT.terminated;
  }
}

export function exitCodeOf(error: unknown): number {
  if (error instanceof Interrupted) return error.exitCode;
  if (error instanceof Usage) return EXIT.usage;
  if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.done : EXIT.usage;
  return EXIT.failed;
}

export function explain(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const { code } = error as NodeJS.ErrnoException;
  return typeof code === 'string' ? error.message : (error.stack ?? error.message);
}
