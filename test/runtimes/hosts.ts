// Runtimes that tests run in: programs that are started with a file, and a browser that opens a page. What a run says of
// its tests is counted; one that hangs is ended, with all that it has started.

import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Browser } from 'playwright-core';
import type { Report } from '../harness.js';
import { ROOT } from './bundles.js';
import { MARK } from './files.js';

/** What came of a run. */
export interface Ran {
  passed: number;
  failed: number;
  /** Why tests were left out, and how often. */
  leftOut: Map<string, number>;
  /** What it printed besides. */
  output: string[];
}

/** A program as one text, or built files by their names below dist/test. */
export type What = { readonly text: string } | { readonly files: readonly string[] };

export interface Host {
  readonly name: string;
  run(what: What): Promise<Ran>;
  close(): Promise<void>;
}

/** Milliseconds that a run may take. */
const LIMIT_MS = 300_000;

/** What ends the groups of processes that run now. They do not outlive this one, whatever ends it. */
const running = new Set<() => void>();
process.on('exit', () => {
  for (const kill of running) kill();
});
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));

/** Counts what a run's lines say. */
class Listener {
  readonly ran: Ran = { passed: 0, failed: 0, leftOut: new Map(), output: [] };
  #current: string | undefined;

  hear(line: string): void {
    const { ran } = this;
    // uvu may have left something on the line.
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

  /** The run is over; `fault`: it did not end as it should. */
  end(fault: string | undefined): Ran {
    const { ran } = this;
    if (fault === undefined && this.#current === undefined) return ran;
    // A test that failed ends its run badly as well.
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
  /** Bundles find packages from here, and the core where the tests look for it. */
  readonly #folder = mkdtempSync(join(ROOT, 'dist/test/bundles-'));
  #bundles = 0;

  constructor(name: string, program: string, args: readonly string[]) {
    this.name = name;
    this.#program = program;
    this.#args = args;
  }

  run(what: What): Promise<Ran> {
    if ('files' in what) return this.#start(join(ROOT, 'dist/test/runtimes/program.js'), what.files);
    const file = join(this.#folder, `${++this.#bundles}.js`);
    writeFileSync(file, what.text);
    return this.#start(file, []);
  }

  async #start(file: string, args: readonly string[]): Promise<Ran> {
    const child = spawn(this.#program, [...this.#args, file, ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
      // A group of its own, so that what it started goes with it.
      detached: true,
      env: { ...process.env, UFFD_CORE: 'release', NO_COLOR: '1' },
    });
    const listener = new Listener();
    let rest = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      const lines = (rest + text).split('\n');
      rest = lines.pop() as string;
      for (const line of lines) listener.hear(line);
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => listener.ran.output.push(text));
    const kill = (): void => {
      try {
        process.kill(-(child.pid as number), 'SIGKILL');
      } catch {
        // They have all ended.
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
    if (rest !== '') listener.hear(rest);
    return listener.end(fault);
  }

  async close(): Promise<void> {
    rmSync(this.#folder, { recursive: true, force: true });
  }
}

/** Where pages come from; nothing leaves the browser. */
const ORIGIN = 'http://localhost';
const MODULES: Record<string, string> = {
  uvu: 'node_modules/uvu/dist/index.mjs',
  'uvu/diff': 'node_modules/uvu/diff/index.mjs',
  kleur: 'node_modules/kleur/index.mjs',
  dequal: 'node_modules/dequal/dist/index.mjs',
  diff: 'node_modules/diff/lib/index.mjs',
  '@assemblyscript/loader': 'node_modules/@assemblyscript/loader/index.js',
  '#wasm': 'dist/core/release.js',
  '#trace': 'dist/core/trace.js',
};
const STAND_INS = [
  'assert',
  'child_process',
  'events',
  'fs',
  'module',
  'os',
  'path',
  'url',
  'timers/promises',
];

/** What a page imports by a bare name, and what another file stands in for. */
function importMap(): string {
  const place = (file: string): string => `${ORIGIN}/${file}`;
  const imports = Object.fromEntries(Object.entries(MODULES).map(([name, file]) => [name, place(file)]));
  for (const name of [...STAND_INS.map((module) => `node:${module}`), 'binaryen'])
    imports[name] = place('dist/test/runtimes/stand-ins.js');
  for (const file of ['dist/test/kernel/support.js', 'dist/test/semantics/real.js'])
    imports[place(file)] = place('dist/test/runtimes/no-kernel.js');
  return JSON.stringify({ imports });
}

/** The page that runs built files: with Node's globals as the tests know them. */
const BUILT = `
  import * as globals from '${ORIGIN}/dist/test/runtimes/globals.js';
  Object.assign(globalThis, globals);
  await import('${ORIGIN}/dist/test/runtimes/begin.js');
  for (const file of globalThis.files) await import('${ORIGIN}/dist/test/' + file + '.js');
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
    // A page that is isolated has shared memory.
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
    page.on('console', (message) => listener.hear(message.text()));
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
