// The thread that serves one userfaultfd, once it is told which. It ends when the watch ends, when it is stopped, or when it fails; whoever
// started it hears of that, and takes the descriptor back.

import '../linux.js';
import { EventEmitter, once } from 'node:events';
import { type MessagePort, parentPort } from 'node:worker_threads';
import { UffdError } from '../errors.js';
import type { Operation } from '../features.js';
import type { RegisteredRange } from '../handler.js';
import { MessageDecoder } from '../messages.js';
import { TraceWriter } from '../trace/writer.js';
import { Userfaultfd } from '../userfaultfd.js';
import { Answers } from './answers.js';
import { Background } from './background.js';
import type { Region } from './handoff.js';
import { MemoryFile } from './memory-file.js';
import type { SessionReport, SessionTask } from './session-task.js';
import { Tally } from './tally.js';

// What takes time at first, while nobody waits for it: koffi is loaded, and the core compiled.
Userfaultfd.isSupported();
new MessageDecoder();

const owner = parentPort as MessagePort;
const report = (it: SessionReport): void => owner.postMessage(it);
const [task] = (await once(owner, 'message')) as [SessionTask];

function rangeOf({ start, length, pageSize }: Region): RegisteredRange {
  // What the kernel answers for such memory; huge pages have no zero page.
  const operations: Operation[] = pageSize === 4096 ? ['copy', 'zero', 'wake'] : ['copy', 'wake'];
  return { start, length, pageSize, modes: new Set(['missing']), operations: new Set(operations) };
}

const file = new MemoryFile(task.memory);
const record =
  task.record === undefined ? undefined : TraceWriter.toFile(task.record.file, { about: task.record.about });
let ended: UffdError | 'closed' | undefined;
const over = new EventEmitter();
let uffd: Userfaultfd | undefined;
try {
  uffd = Userfaultfd.wrap(task.fd, {
    features: ['event-remove'],
    ranges: task.regions.map(rangeOf),
    ...(task.pid > 0 ? { pid: task.pid } : {}),
    ...(record ? { record } : {}),
  });
  const tally = new Tally(task.tally);
  const answers = new Answers({
    regions: task.regions,
    source: {
      stretchAt: (offset) => file.stretchAt(offset),
      bytesAt: (offset) => file.address + BigInt(offset),
    },
    tally,
    window: task.window,
    latency(ns) {
      task.latency.record(Math.max(1, Math.round(ns)));
      tally.took(ns / 1e9);
    },
    now: () => performance.now(),
    closed: (error) => {
      ended = error ?? 'closed';
      over.emit('closed');
    },
  });
  report({ is: 'serving', stopHandle: uffd.stopHandle });
  const stopped = new Int32Array(task.stopped);
  const background = new Background(answers, task, uffd);
  while (!uffd.closed && Atomics.load(stopped, 0) === 0) {
    // Whoever waits comes first.
    uffd.poll(answers);
    if (!uffd.closed && !background.step()) {
      report({ is: 'settled' });
      uffd.start(answers, { wait: task.wait });
      // On the event loop `start` returns at once.
      if (uffd.waiting) await Promise.race([once(owner, 'message'), once(over, 'closed')]);
      break;
    }
  }
  const gone = ended instanceof UffdError && ended.code === 'ESRCH';
  report({ is: 'ended', how: gone ? 'exited' : ended ? 'closed' : 'stopped' });
} finally {
  const open = uffd === undefined || !uffd.closed;
  if (uffd?.closed === false) uffd.release();
  report({ is: 'left', open });
  record?.close();
  file.close();
  // Nobody waits for messages any more.
  owner.unref();
}
