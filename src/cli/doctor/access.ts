// Tries every way to open a userfaultfd, each by itself: which is open, and what the kernel says where it is
// not. In a process of its own, since a filter may answer with a signal; what ended by one is tried no more.

import { type Feature, UffdError, Userfaultfd } from '../../index.js';
import type { AccessFindings, Door } from './findings.js';
import { runHelper } from './helper.js';

/** In the order in which the library tries them. A device that opens serves all faults, so it has one way only. */
const DOORS = [
  { via: 'syscall', userModeOnly: false },
  { via: 'device', userModeOnly: false },
  { via: 'syscall', userModeOnly: true },
] as const;
type Way = (typeof DOORS)[number];

/** For one door, the start of the process included. */
export const DOOR_MS = 10_000;

export interface Tried extends Pick<AccessFindings, 'doors' | 'way' | 'obstacle'> {
  /** What the kernel offers; empty where no door is open. */
  features: ReadonlySet<Feature>;
  /** Bytes of a page; null where no door is open. */
  pageSize: number | null;
}

/** What the process tells of a door; of one at which no door can be tried, `obstacle`. */
type Answer =
  | { result: 'ok'; features: Feature[]; pageSize: number }
  | { result: string }
  | { obstacle: string };

/** @throws the signal's reason */
export async function tryDoors(signal: AbortSignal, limitMs = DOOR_MS): Promise<Tried> {
  const tried: Tried = {
    doors: [],
    way: null,
    obstacle: forbidden() ?? null,
    features: new Set(),
    pageSize: null,
  };
  while (tried.doors.length < DOORS.length && tried.obstacle === null) {
    signal.throwIfAborted();
    const left = DOORS.slice(tried.doors.length);
    const end = await runHelper<Answer>(
      'doors',
      { answers: left.length, message: left },
      (answer) => note(tried, answer),
      signal,
      limitMs,
    );
    if (tried.doors.length === DOORS.length || tried.obstacle !== null) break;
    signal.throwIfAborted();
    if (end.signal === undefined)
      tried.obstacle = `the ways to open a userfaultfd cannot be tried: ${end.why}`;
    // What it was at when it was killed is what was answered with it.
    else note(tried, { result: end.signal });
  }
  return tried;
}

function note(tried: Tried, answer: Answer): void {
  if ('obstacle' in answer) {
    tried.obstacle ??= answer.obstacle;
    return;
  }
  const door = DOORS[tried.doors.length] as Way;
  tried.doors.push({ ...door, result: answer.result } satisfies Door);
  if (tried.way || !('features' in answer)) return;
  Object.assign(tried, { way: door, features: new Set(answer.features), pageSize: answer.pageSize });
}

/** What of Node keeps the doctor from trying anything. */
function forbidden(): string | undefined {
  const { permission } = process as { permission?: { has(scope: string): boolean } };
  const lacks = [
    ['child', '--allow-child-process'],
    ['worker', '--allow-worker'],
  ].flatMap(([scope = '', flag = '']) => (permission?.has(scope) === false ? [flag] : []));
  if (lacks.length === 0) return undefined;
  return `Node's permission model is on, and forbids what the doctor needs to try anything (${lacks.join(', ')})`;
}

/** Runs in a process of its own. */
export function tryDoorsAsTold(): void {
  process.on('disconnect', () => process.kill(process.pid, 'SIGKILL'));
  process.once('message', (doors: readonly Way[]) => {
    for (const door of doors) process.send?.(answerAt(door));
  });
}

function answerAt(door: Way): Answer {
  try {
    const { features, pageSize } = Userfaultfd.probe(door);
    return { result: 'ok', features: [...features], pageSize };
  } catch (error) {
    if (error instanceof UffdError) return { result: error.code };
    // This machine lacks what every door needs.
    return { obstacle: (error as Error).message };
  }
}
