// `uffd record-handler`: its options, its help, and its exit code.

import type { Command } from 'commander';
import { type HandlerRecording, recordHandler } from '../../testing/index.js';
import { Usage } from '../exit.js';
import { interruptible } from '../signals.js';
import { counted, printable } from '../text.js';

const HELP = `
What it does:
  It runs the handler, unmodified, on the real kernel. The handler's reads and
  ioctls of a userfaultfd are trapped (seccomp), made for it, and written to the
  trace. uffd inspect, uffd report and Perfetto read the trace, and uffd replay
  compares it with the kernel's rules.

  Start the handler with the same words as without recording: its socket, its
  memory file and its output are its own. A userfaultfd is recorded from the
  handler's first call on it. The first one goes to FILE, further ones to
  FILE.2, FILE.3 and so on.

What is different for the handler:
  Its calls on userfaultfds are made one after the other, also those of several
  threads. A fault takes 30 to 40 us longer.
  The userfaultfd is non-blocking for all processes that have it; reads that
  have to wait still do. A signal interrupts such a read only if it is fatal.
  It cannot gain privileges (no setuid).

What is not in the trace:
  Waits (poll, select, epoll), page contents, and calls through io_uring. The
  kernel carries MOVE out for the handler itself; its result is recorded at the
  thread's next call.

When it ends:
  It ends with the handler's first process; what is left of its process group
  is killed. On Ctrl-C and SIGTERM the handler gets SIGTERM, and after 3 s
  SIGKILL. The trace is complete in each case. If it cannot be written any more,
  a warning says why, and the handler goes on.

What it needs:
  Linux 5.6 on x64 or arm64, and kernel.yama.ptrace_scope at most 1. No other
  program may answer the handler's system calls (EBUSY).

Exit codes:
  0 to 255  the handler's own; 128 and the signal's number if a signal ended it
  1    also: the handler could not be recorded; the reason is on stderr
  2    also: an option or an argument is wrong
  127  also: there is no such program
  130  also: interrupted (Ctrl-C)
  143  also: terminated (SIGTERM)

Examples:
  uffd record-handler --trace run.trace -- ./my-handler /run/uffd.sock memory
  uffd inspect run.trace
  uffd check-handler --scenario remove-while-paused -- \\
    uffd record-handler --trace run.trace -- ./my-handler {socket} {memory}
`;

interface Flags {
  trace: string;
}

export function addRecordHandler(program: Command): void {
  program
    .command('record-handler')
    .summary('record what a page-fault handler in any language does')
    .description('Records what a page-fault handler in any language does, on the real kernel.')
    .argument('[command...]', "the handler's command, after --")
    .requiredOption('--trace <FILE>', 'the file to write, which is made or emptied')
    .addHelpText('after', HELP)
    .action(record);
}

async function record(command: string[], { trace }: Flags): Promise<void> {
  if (command.length === 0)
    throw new Usage("the handler's command is missing: uffd record-handler --trace FILE -- ./my-handler");
  const say = (text: string): void => void process.stderr.write(`uffd: ${printable(text)}\n`);
  await interruptible(async (signal) => {
    const { status, traces } = await recordHandler({ command, trace, signal, onWarning: say });
    for (const text of told(traces)) say(text);
    signal.throwIfAborted();
    process.exitCode = status;
  });
}

function told(traces: HandlerRecording['traces']): string[] {
  if (traces.length === 0) return ['no use of a userfaultfd was recorded, so there is no trace'];
  return traces.map(({ file, records, unseen, failure }) => {
    const unknown = unseen > 0 ? `; the results of ${counted(unseen, 'call')} are not known (ENODATA)` : '';
    return failure === undefined
      ? `${counted(records, 'record')} in ${file}${unknown}`
      : `${file} is not complete: ${failure}`;
  });
}
