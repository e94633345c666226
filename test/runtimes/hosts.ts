// Runtimes that tests run in: programs that are started with a file, and a browser that opens a page. A run's reports
// are counted. A run that hangs is killed, with all processes that it has started.

import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Browser } from 'playwright-core';
import type { Report } from '../support/harness.js';
import { ROOT } from './bundles.js';
import { MARK } from './files.js';

/** The results of a run. */
export interface Ran {
  passed: number;
  failed: number;
  /** How many tests were left out, by reason. */
  leftOut: Map<string, number>;
  /** Everything else that the run printed. */
  output: string[];
}

/** A program as one text, or built files by their names below build/test. */
export type What = { readonly text: string } | { readonly files: readonly string[] };

export interface Host {
  readonly name: string;
  run(what: What): Promise<Ran>;
  close(): Promise<void>;
}

/** Milliseconds that a run may take. */
const LIMIT_MS = 300_000;

/** Functions that kill the process groups that run now, so that none outlives this process. */
const running = new Set<() => void>();
process.on('exit', () => {
  for (const kill of running) kill();
});
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));

/** Counts the reports in a run's lines. */
class Listener {
  readonly ran: Ran = { passed: 0, failed: 0, leftOut: new Map(), output: [] };
  #current: string | undefined;

  take(line: string): void {
    const { ran } = this;
    // uvu may have begun the line with other text.
    const at = line.indexOf(MARK);
    if (at !== 0) ran.output.push(at < 0 ? line : line.slice(0, at));
    if (at < 0) return;
    const report = JSON.parse(line.slice(at + MARK.length)) as Report;
    this.#current = report.event === 'begin' ? report.name : undefined;
    if (report.event === 'passed') ran.passed++;
    else if (report.event === 'failed') ran.failed++;
    else if (report.event === 'skipped')
      ran.leftOut.set(report.reason, (ran.leftOut.get(report.reason) ?? 0) + 1);
  }

  /** Ends the run. `fault`: how the run ended, if not as it should. */
  end(fault: string | undefined): Ran {
    const { ran } = this;
    if (fault === undefined && this.#current === undefined) return ran;
    // A failed test also makes its run end badly, and must not be counted twice.
    if (this.#current !== undefined || ran.failed === 0) ran.failed++;
    ran.output.push(`${fault ?? 'it ended'}${this.#current ? `, in the middle of ${this.#current}` : ''}`);
    return ran;
  }
}

/** A program that runs a file, and its arguments. */
export class Command implements Host {
  readonly name: string;
  readonly #program: string;
  readonly #args: readonly string[];
  /** A folder from which bundles can import packages, and the core by the path that tests use. */
  readonly #folder = mkdtempSync(join(ROOT, 'build/test/bundles-'));
  #bundles = 0;

  constructor(name: string, program: string, args: readonly string[]) {
    this.name = name;
    this.#program = program;
    this.#args = args;
  }

  run(what: What): Promise<Ran> {
    if ('files' in what) return this.#start(join(ROOT, 'build/test/runtimes/program.js'), what.files);
    const file = join(this.#folder, `${++this.#bundles}.js`);
    writeFileSync(file, what.text);
    return this.#start(file, []);
  }

  async #start(file: string, args: readonly string[]): Promise<Ran> {
    const child = spawn(this.#program, [...this.#args, file, ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
      // A process group of its own, so that `kill` also ends the processes that the child started.
      detached: true,
      env: { ...process.env, UFFD_CORE: 'release', NO_COLOR: '1' },
    });
    const listener = new Listener();
    let rest = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      const lines = (rest + text).split('\n');
      rest = lines.pop() as string;
      for (const line of lines) listener.take(line);
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => listener.ran.output.push(text));
    const kill = (): void => {
      try {
        process.kill(-(child.pid as number), 'SIGKILL');
      } catch {
        // All processes of the group have ended.
      }
    };
    running.add(kill);
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      kill();
    }, LIMIT_MS);
    const fault = await new Promise<string | undefined>((resolve) => {
      child.on('error', (error) => resolve(error.message));
      child.on('close', (code, signal) => {
        if (late) resolve(`it was still running after ${LIMIT_MS} ms`);
        else resolve(code === 0 ? undefined : `it ended with ${signal ?? `exit code ${code}`}`);
      });
    });
    clearTimeout(timer);
    if (child.pid !== undefined) kill();
    running.delete(kill);
    if (rest !== '') listener.take(rest);
    return listener.end(fault);
  }

  async close(): Promise<void> {
    rmSync(this.#folder, { recursive: true, force: true });
  }
}

/** The origin of all pages. The route below answers every request, so none leaves the browser. */
const ORIGIN = 'http://localhost';
const MODULES: Record<string, string> = {
  uvu: 'node_modules/uvu/dist/index.mjs',
  'uvu/diff': 'node_modules/uvu/diff/index.mjs',
  kleur: 'node_modules/kleur/index.mjs',
  dequal: 'node_modules/dequal/dist/index.mjs',
  diff: 'node_modules/diff/lib/index.mjs',
  '@assemblyscript/loader': 'node_modules/@assemblyscript/loader/index.js',
  '#wasm': 'build/core/release.js',
  '#trace': 'build/core/trace.js',
  '#pager': 'build/core/pager.js',
};
const STAND_INS = [
  'assert',
  'child_process',
  'events',
  'fs',
  'module',
  'net',
  'os',
  'path',
  'url',
  'timers/promises',
  'worker_threads',
];

/** The files for the bare names that a page imports, and for the modules that stand-ins replace. */
function importMap(): string {
  const place = (file: string): string => `${ORIGIN}/${file}`;
  const imports = Object.fromEntries(Object.entries(MODULES).map(([name, file]) => [name, place(file)]));
  for (const name of [...STAND_INS.map((module) => `node:${module}`), 'binaryen'])
    imports[name] = place('build/test/runtimes/stand-ins.js');
  for (const file of ['build/test/support/real-kernel.js', 'build/test/semantics/real.js'])
    imports[place(file)] = place('build/test/runtimes/no-kernel.js');
  return JSON.stringify({ imports });
}

/** The program of a page that runs built files, with the globals of Node that the tests use. */
const BUILT = `
  import * as globals from '${ORIGIN}/build/test/runtimes/globals.js';
  Object.assign(globalThis, globals);
  await import('${ORIGIN}/build/test/runtimes/begin.js');
  for (const file of globalThis.files) await import('${ORIGIN}/build/test/' + file + '.js');
  await (await import('uvu')).exec();`;

export class Chromium implements Host {
  readonly name: string;
  readonly #browser: Browser;

  constructor(browser: Browser) {
    this.#browser = browser;
    this.name = `Chromium ${browser.version()}`;
  }

  async run(what: What): Promise<Ran> {
    const context = await this.#browser.newContext();
    const page = await context.newPage();
    const listener = new Listener();
    const text = 'text' in what ? what.text : BUILT;
    const files = 'files' in what ? what.files : [];
    // Only a cross-origin isolated page has shared memory.
    const headers = {
      'Cross-Origin-Opener-Policy': 'same-origin',
      'Cross-Origin-Embedder-Policy': 'require-corp',
    };
    await page.route('**/*', (route) => {
      const { pathname } = new URL(route.request().url());
      if (pathname === '/') {
        const body = `<script type="importmap">${importMap()}</script><script>files = ${JSON.stringify(files)}</script>`;
        return route.fulfill({ headers, contentType: 'text/html', body });
      }
      const contentType = 'text/javascript';
      if (pathname === '/program.js') return route.fulfill({ headers, contentType, body: text });
      try {
        return route.fulfill({ headers, contentType, body: readFileSync(join(ROOT, pathname)) });
      } catch {
        return route.fulfill({ status: 404 });
      }
    });
    page.on('console', (message) => listener.take(message.text()));
    page.on('pageerror', (error) => listener.ran.output.push(`${error}`));
    let timer: NodeJS.Timeout | undefined;
    try {
      await page.goto(`${ORIGIN}/`);
      const late = new Promise<never>((_, reject) => {
        timer = setTimeout(() => reject(new Error(`it was still running after ${LIMIT_MS} ms`)), LIMIT_MS);
      });
      await Promise.race([page.evaluate(`import('${ORIGIN}/program.js').then(() => {})`), late]);
      return listener.end(undefined);
    } catch (error) {
      return listener.end((error as Error).message);
    } finally {
      clearTimeout(timer);
      await context.close();
    }
  }

  close(): Promise<void> {
    return this.#browser.close();
  }
}
