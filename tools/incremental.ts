// Runs the steps of a build whose inputs or outputs have changed, in parallel if no step needs another's outputs.
// Changes are detected by hashes of contents, so neither a checkout nor a copy causes a rebuild.

import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';

export interface Step {
  readonly name: string;
  /** Files and folders that it reads, from the root. A step waits for the steps that write any of them. */
  readonly inputs: readonly string[];
  /** Files and folders that it alone writes. */
  readonly outputs: readonly string[];
  run(): Promise<void>;
}

/** The hashes of each step's inputs and outputs from its last run, by the step's name. */
type State = Record<string, { inputs: string; outputs: string }>;

/** Adds a file, or all files of a folder, with their contents to a hash. */
function add(hash: ReturnType<typeof createHash>, path: string): void {
  if (!existsSync(path)) {
    hash.update(`${path}\0-\0`);
  } else if (statSync(path).isDirectory()) {
    for (const name of readdirSync(path).sort()) add(hash, join(path, name));
  } else {
    const content = readFileSync(path);
    hash.update(`${path}\0${content.length}\0`).update(content);
  }
}

function hashOf(paths: readonly string[]): string {
  const hash = createHash('sha256');
  for (const path of paths) add(hash, path);
  return hash.digest('hex');
}

/** Whether one path is the other, or lies in it. */
function overlap(a: string, b: string): boolean {
  return a === b || a.startsWith(`${b}/`) || b.startsWith(`${a}/`);
}

function waitsFor(step: Step, other: Step): boolean {
  return (
    step !== other && step.inputs.some((input) => other.outputs.some((output) => overlap(input, output)))
  );
}

/**
 * Runs those steps whose inputs or outputs have changed. Each step prints a line when it is done.
 *
 * @param always Files that all steps depend on.
 * @param stateFile Where hashes are kept from one build to the next.
 */
export async function runSteps(
  steps: readonly Step[],
  always: readonly string[],
  stateFile: string,
): Promise<void> {
  const state: State = existsSync(stateFile) ? JSON.parse(readFileSync(stateFile, 'utf8')) : {};
  const done = new Map<Step, Promise<void>>();
  const begun = performance.now();
  let free = availableParallelism();
  const waiting: (() => void)[] = [];
  let ran = 0;

  async function runStep(step: Step): Promise<void> {
    await Promise.all(steps.filter((other) => waitsFor(step, other)).map((other) => done.get(other)));
    const inputs = hashOf([...always, ...step.inputs]);
    const last = state[step.name];
    if (last?.inputs === inputs && last.outputs === hashOf(step.outputs)) return;
    if (free === 0) await new Promise<void>((resolve) => waiting.push(resolve));
    else free--;
    const stepBegun = performance.now();
    try {
      delete state[step.name];
      for (const output of step.outputs) mkdirSync(dirname(output), { recursive: true });
      await step.run();
    } finally {
      const next = waiting.shift();
      if (next) next();
      else free++;
    }
    ran++;
    state[step.name] = { inputs, outputs: hashOf(step.outputs) };
    console.log(`built  ${step.name.padEnd(16)} ${seconds(stepBegun)}`);
  }

  // A step begins only after all steps are in `done`, because it may wait for any of them.
  for (const step of steps)
    done.set(
      step,
      Promise.resolve().then(() => runStep(step)),
    );
  const ended = await Promise.allSettled(done.values());
  mkdirSync(dirname(stateFile), { recursive: true });
  const kept = Object.entries(state).sort(([a], [b]) => (a < b ? -1 : 1));
  writeFileSync(stateFile, `${JSON.stringify(Object.fromEntries(kept), undefined, 2)}\n`);
  for (const one of ended) if (one.status === 'rejected') throw one.reason;
  console.log(`built  ${ran} of ${steps.length} steps, in ${seconds(begun)}; the others are unchanged`);
}

function seconds(begun: number): string {
  return `${((performance.now() - begun) / 1000).toFixed(1)} s`;
}
