// Runs one scenario: starts the handler and the guest, waits for the guest's result, and judges.
//
// Rules:
//  - Every wait has a deadline, and at the end no process is left.
//  - The guest is expendable: a handler that kills its monitor, or memory that faults, ends the guest's process alone.

import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { ENTRY } from '../workers/entry-file.js';
import { startProcess } from '../workers/launcher.js';
import { type GuestLine, type GuestOptions, PAGE_SIZE, PAGES, type Request } from './guest-protocol.js';
import { exitInWords, type HandlerExit, type HandlerOptions, HandlerProcess } from './handler-process.js';
import { writeMemoryFile } from './page-contents.js';
import { faultsOf, stateOf, waitsOf } from './process-state.js';
import type { ScenarioResult, Verdict, WrongPage } from './result.js';
import type { Scenario } from './scenario.js';
import { NEXT_MONITOR } from './scenarios/index.js';

/** How long a guest is given to report after its handler has ended. It may hang from then on. */
const AFTER_EXIT_MS = 1000;
const STOPPED_MS = 200;
const STDERR_LINES = 6;
/** The descriptor of the guest's lines (LINES_FD of guest-process.ts), among its streams. */
const LINES = 4;

export interface RunOptions extends HandlerOptions {
  readonly deadlineMs: number;
  /** A folder for the files of failures. */
  readonly evidence?: string | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** What a run comes to. */
type Outcome = { verdict: Verdict; reason?: string | undefined; page?: WrongPage | undefined };
const PASSED: Outcome = { verdict: 'pass' };
const failed = (reason: string): Outcome => ({ verdict: 'fail', reason });

/** How a guest's process has ended. */
type GuestEnd =
  | Exclude<GuestLine, { is: 'step' }>
  | { readonly is: 'killed'; readonly how: string }
  | { readonly is: 'abandoned' }
  | { readonly is: 'late' };

/** Runs a scenario once. @throws Error of spawn, if the handler cannot be started; the reason of `signal` */
export async function runScenario(scenario: Scenario, options: RunOptions): Promise<ScenarioResult> {
  const { name, why } = scenario;
  const began = performance.now();
  const inapplicable = scenario.inapplicable?.();
  if (inapplicable !== undefined)
    return { scenario: name, why, verdict: 'not applicable', reason: inapplicable, milliseconds: 0 };
  const run = new Run(scenario, options);
  try {
    const { verdict, reason, page } = await run.judge();
    const details = verdict === 'fail' ? run.details() : [];
    const evidence = verdict === 'fail' ? run.keep(reason ?? '') : undefined;
    return {
      ...{ scenario: name, why, verdict },
      ...(reason === undefined ? {} : { reason }),
      ...(page === undefined ? {} : { page }),
      ...(details.length === 0 ? {} : { details }),
      ...(evidence === undefined ? {} : { evidence }),
      milliseconds: Math.round(performance.now() - began),
    };
  } finally {
    await run.end();
  }
}

class Run {
  readonly #scenario: Scenario;
  readonly #options: RunOptions;
  readonly #folder = mkdtempSync(join(tmpdir(), 'uffd-check-'));
  readonly #socket = join(this.#folder, 'uffd.sock');
  readonly #memory = join(this.#folder, 'memory');
  #handler: HandlerProcess | undefined;
  readonly #guests: ChildProcess[] = [];
  #restarting: Promise<void> | undefined;
  /** The guest's steps, and what else it wrote. */
  #steps: string[] = [];
  /** What the handler's threads waited for when the deadline came. */
  #waits: string[] = [];
  #state = '';

  constructor(scenario: Scenario, options: RunOptions) {
    this.#scenario = scenario;
    this.#options = options;
  }

  async judge(): Promise<Outcome> {
    const { pages = PAGES, pageSize = PAGE_SIZE, sparse = false } = this.#scenario;
    writeMemoryFile(this.#memory, { pages, pageSize, sparse });
    const notReady = await this.#startHandler();
    if (notReady) return notReady;
    return this.#outcome(await this.#play(this.#scenario));
  }

  /** Starts the handler. Returns why it is not ready. */
  async #startHandler(): Promise<Outcome | undefined> {
    const { deadlineMs, ready } = this.#options;
    this.#handler = await HandlerProcess.start(this.#options, { socket: this.#socket, memory: this.#memory });
    const isReady = this.#handler.untilReady(this.#socket, ready).then(() => true);
    if (!(await this.#within(deadlineMs, isReady))) {
      this.#observe();
      const missing = ready ? `printed nothing that matches ${ready}` : 'bound no socket at {socket}';
      return failed(`the handler ${missing} within ${deadlineMs} ms`);
    }
    const { exit } = this.#handler;
    return exit && failed(`the handler ${exitInWords(exit)} before it was ready`);
  }

  /** Waits for a promise; undefined if the time is up first. */
  async #within<T>(ms: number, promise: Promise<T>): Promise<T | undefined> {
    const { signal } = this.#options;
    const timer = new AbortController();
    const late = sleep(ms, undefined, { signal: timer.signal }).catch(() => undefined);
    const aborted = signal && once(signal, 'abort', { signal: timer.signal }).catch(() => undefined);
    try {
      signal?.throwIfAborted();
      const first = await Promise.race([promise, late, ...(aborted ? [aborted] : [])]);
      signal?.throwIfAborted();
      return first as T | undefined;
    } finally {
      timer.abort();
    }
  }

  // ---- the guest -------------------------------------------------------------------------------------------

  /** Plays a scenario with a guest of its own, until the guest reports, or cannot report any more. */
  async #play(scenario: Scenario): Promise<GuestEnd> {
    const handler = this.#handler as HandlerProcess;
    const options: GuestOptions = {
      ...{ scenario: scenario.name, socket: this.#socket, memory: this.#memory, handler: handler.pid },
    };
    const guest = startProcess(
      'conformance-guest',
      [JSON.stringify(options)],
      { stdio: ['ignore', 'pipe', 'pipe', 'ipc', 'pipe'], execArgv: [] },
      ENTRY,
    );
    this.#guests.push(guest);
    this.#steps = [];
    for (const stream of [guest.stdout, guest.stderr])
      stream?.setEncoding('utf8').on('data', (text: string) => this.#steps.push(text.trimEnd()));
    guest.on('message', (request) => void this.#fulfil(request as Request, guest));
    const reported = this.#reported(guest);
    const abandoned = this.#abandoned();
    const end = await this.#within(this.#options.deadlineMs, Promise.race([reported, abandoned]));
    if (end === undefined) this.#observe(guest);
    return end ?? { is: 'late' };
  }

  /** The guest's report, or how its process has ended without one. */
  async #reported(guest: ChildProcess): Promise<GuestEnd> {
    const exited = once(guest, 'exit');
    for await (const line of createInterface({ input: guest.stdio[LINES] as Readable })) {
      const it = JSON.parse(line) as GuestLine;
      if (it.is !== 'step') return it;
      this.#steps.push(it.text);
    }
    const [code, signal] = await exited;
    return { is: 'killed', how: exitInWords({ code, signal }) };
  }

  /** Resolves some time after the handler has ended: the guest would hang now. */
  async #abandoned(): Promise<GuestEnd> {
    for (;;) {
      const handler = this.#handler as HandlerProcess;
      await handler.exited;
      // The guest may have asked for another handler.
      await this.#restarting;
      await sleep(AFTER_EXIT_MS, undefined, { ref: false });
      if (handler === this.#handler) return { is: 'abandoned' };
    }
  }

  async #fulfil(request: Request, guest: ChildProcess): Promise<void> {
    if (request === 'kill me') {
      const exited = once(guest, 'exit');
      guest.kill('SIGKILL');
      await exited;
      // The guest has stopped it, so that it gets to its fills after the end.
      this.#handler?.resume();
    }
    if (request === 'stop me') {
      guest.kill('SIGSTOP');
      await sleep(STOPPED_MS);
      guest.kill('SIGCONT');
      guest.send('done');
    }
    if (request === 'restart the handler') {
      this.#restarting = this.#restart();
      await this.#restarting;
      guest.send(this.#handler?.pid as number);
    }
  }

  async #restart(): Promise<void> {
    await this.#handler?.kill();
    rmSync(this.#socket, { force: true });
    await this.#startHandler();
  }

  // ---- the verdict -----------------------------------------------------------------------------------------

  async #outcome(end: GuestEnd): Promise<Outcome> {
    const { handlerMay } = this.#scenario;
    const handler = this.#handler as HandlerProcess;
    if (end.is === 'not applicable') return { verdict: 'not applicable', reason: end.reason };
    if (handlerMay === 'refuse') return this.#afterRefusal(end);
    if (handlerMay === 'outlive') return this.#afterGuest(end);
    if (handlerMay === 'give up' && (end.is === 'abandoned' || end.is === 'killed'))
      return this.#givenUp(end);
    switch (end.is) {
      case 'passed':
        return handler.exit && crashed(handler.exit)
          ? failed(`the guest was served, but the handler ${exitInWords(handler.exit)}`)
          : PASSED;
      case 'failed':
        return this.#failed(end);
      case 'killed':
        return failed(`the monitor ${end.how} while it ${this.#lastStep}; the handler may have killed it`);
      case 'abandoned':
        return failed(`the handler ${this.#exit}, and the guest hangs: it ${this.#lastStep}`);
      case 'late':
        return failed(this.#lateReason());
    }
  }

  /** The guest could not be served. The handler has said so by its end, or by the monitor's. */
  #givenUp(end: GuestEnd): Outcome {
    const handler = this.#handler as HandlerProcess;
    if (handler.exit && crashed(handler.exit))
      return failed(`the handler ${exitInWords(handler.exit)}, instead of saying what is wrong`);
    const how = end.is === 'killed' ? 'ended the monitor' : `${this.#exit}; the guest hangs then`;
    return { verdict: 'pass', reason: `the handler ${how}` };
  }

  /** The hand-off was wrong: the handler has exited, killed the monitor, or goes on with the next one. */
  async #afterRefusal(end: GuestEnd): Promise<Outcome> {
    const handler = this.#handler as HandlerProcess;
    if (end.is === 'failed' && !end.closed) return this.#failed(end);
    if (end.is === 'late') return failed(this.#lateReason());
    await this.#endGuests();
    const again: GuestEnd = handler.exit ? { is: 'abandoned' } : await this.#play(NEXT_MONITOR);
    if (handler.exit) {
      return !crashed(handler.exit)
        ? { verdict: 'pass', reason: `the handler ${exitInWords(handler.exit)}` }
        : failed(`the handler ${exitInWords(handler.exit)}`);
    }
    if (again.is === 'passed') return PASSED;
    return failed(`the handler does not serve the next monitor: ${this.#endInWords(again)}`);
  }

  /** The guest has ended: the handler exits with 0, or goes on with the next monitor. */
  async #afterGuest(end: GuestEnd): Promise<Outcome> {
    const handler = this.#handler as HandlerProcess;
    if (end.is === 'failed') return this.#failed(end);
    if (end.is === 'late') return failed(this.#lateReason());
    if (end.is === 'abandoned') return failed(`the handler ${this.#exit} while the guest ${this.#lastStep}`);
    await this.#endGuests();
    const again: GuestEnd = handler.exit ? { is: 'abandoned' } : await this.#play(NEXT_MONITOR);
    if (handler.exit) {
      return handler.exit.code === 0
        ? PASSED
        : failed(`the handler ${exitInWords(handler.exit)} because its guest has ended`);
    }
    if (again.is === 'passed') return PASSED;
    return failed(`the handler neither exits nor serves the next monitor: ${this.#endInWords(again)}`);
  }

  #failed({ reason, page }: Extract<GuestLine, { is: 'failed' }>): Outcome {
    return { verdict: 'fail', reason, page: page && { ...page, address: BigInt(page.address) } };
  }

  #endInWords(end: GuestEnd): string {
    if (end.is === 'late') return this.#lateReason();
    if (end.is === 'killed') return `the monitor ${end.how} while it ${this.#lastStep}`;
    if (end.is === 'abandoned') return `the handler ${this.#exit} while the guest ${this.#lastStep}`;
    return end.is === 'passed' ? 'served' : end.is === 'failed' ? end.reason : end.is;
  }

  get #lastStep(): string {
    return this.#steps.at(-1) ?? 'began';
  }

  get #exit(): string {
    const exit = this.#handler?.exit;
    return exit ? exitInWords(exit) : 'runs';
  }

  /** What the guest waits for after the deadline, in words. */
  #lateReason(): string {
    const [waits] = this.#waits;
    return `after ${this.#options.deadlineMs} ms the guest still ${this.#lastStep}${waits ? `: ${waits}` : ''}`;
  }

  /** Notes what the handler and the guest wait for. */
  #observe(guest?: ChildProcess): void {
    const handler = this.#handler as HandlerProcess;
    const faults = guest?.pid === undefined ? undefined : faultsOf(guest.pid);
    const read = faults ? faults.all - faults.unread : 0;
    const lines = faults
      ? [`${plural(faults.unread)} not read, and ${plural(read)} read but not answered`]
      : [];
    this.#waits = [...lines, ...waitsOf(handler.pid).map((line) => `the handler's ${line}`)];
    this.#state = stateOf(handler.pid);
  }

  // ---- reasons and evidence --------------------------------------------------------------------------------

  /** Lines that help to find the cause. */
  details(): string[] {
    const handler = this.#handler;
    const stderr = handler?.stderr.trimEnd().split('\n').slice(-STDERR_LINES) ?? [];
    return [
      ...this.#waits.slice(0, 20),
      ...(handler?.exit ? [`the handler ${exitInWords(handler.exit)}`] : []),
      ...stderr.filter((line) => line !== '').map((line) => `stderr: ${line}`),
    ];
  }

  /** Keeps the files of a failure. Returns their folder. */
  keep(reason: string): string | undefined {
    const { evidence } = this.#options;
    if (evidence === undefined) return undefined;
    const folder = join(evidence, this.#scenario.name);
    mkdirSync(folder, { recursive: true });
    const files = {
      'reason.txt': `${reason}\n`,
      'handler.stdout.txt': this.#handler?.stdout ?? '',
      'handler.stderr.txt': this.#handler?.stderr ?? '',
      'guest-steps.txt': `${this.#steps.join('\n')}\n`,
      'handler.proc.txt': this.#state,
    };
    for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text);
    return folder;
  }

  async #endGuests(): Promise<void> {
    for (const guest of this.#guests.splice(0)) {
      if (guest.exitCode !== null || guest.signalCode !== null) continue;
      const exited = once(guest, 'exit');
      guest.kill('SIGKILL');
      await exited;
    }
  }

  async end(): Promise<void> {
    await this.#endGuests();
    await this.#handler?.end();
    rmSync(this.#folder, { recursive: true, force: true });
  }
}

function plural(faults: number): string {
  return faults === 1 ? '1 fault is' : `${faults} faults are`;
}

/** Whether a handler was ended by an error that it did not see. A program that calls abort has seen it. */
function crashed({ signal }: HandlerExit): boolean {
  return signal !== null && signal !== 'SIGABRT';
}
