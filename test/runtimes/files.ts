// Which test files run where, by their names below test/. What is in no list asks the real kernel, Node's test runners or
// other processes in every test; Node's own run has it.

/** What a line of a report begins with. */
export const MARK = 'uffd-report ';

const named = (folder: string, names: readonly string[], end = 'test'): string[] =>
  names.map((name) => `${folder}/${name}.${end}`);

/** The portable suites. Each runs in a process, or a page, of its own. */
export const SUITES: Readonly<Record<string, readonly string[]>> = {
  core: named('core', [
    ...['deferral', 'huge-pages', 'inbox', 'inbox-load', 'memory', 'pagemap', 'pages', 'ranges'],
    ...['ranges-large', 'request', 'sources', 'transfer'],
  ]),
  trace: named('trace', ['basics', 'codec', 'damage', 'format', 'replay', 'summary']),
  // Each statement is asked of both kernels; the real one is left out, and its place taken.
  sim: named(
    'semantics',
    [
      ...['arguments', 'copy', 'events', 'fills', 'messages', 'move', 'order', 'pages', 'registration'],
      ...['release', 'scan', 'touch', 'write-protect'],
    ],
    'once.test',
  ),
  testing: named('testing', ['page-sizes', 'simulate']),
};

/** Those that take longest: of the artefacts, in the bundle only. */
export const LONG = [
  ...named('core', ['inbox-load', 'ranges-large']),
  ...named('trace', ['damage', 'replay']),
  ...named('testing', ['simulate']),
];

/** What takes minutes in a runtime, and is left out there; the traces of random worlds stand for it. */
export const SLOW: Readonly<Record<string, readonly string[]>> = { Bun: named('testing', ['simulate']) };

/** Built files that other runtimes cannot run: they need places taken that only a page's map of imports can take. */
export const MAPPED = ['sim'];

/** The full library, as a program of each runtime: its own test, and files of Node's run that hold there. */
export const FULL: Readonly<Record<string, readonly string[]>> = {
  Node: ['runtimes/real.test'],
  Deno: ['runtimes/real.test', 'kernel/open.test', 'kernel/contract.test'],
  Bun: [
    ...['runtimes/real.test', 'kernel/open.test', 'kernel/contract.test', 'dirty/tracker.test'],
    ...['kernel/operations.test', 'kernel/errors.test'],
  ],
};
