// Which test files run where, by their names below test/. Files in no list need the real kernel, Node's test runners or
// other processes in every test, so only Node runs them.

/** The prefix of a report's line. */
export const MARK = 'uffd-report ';

const named = (folder: string, names: readonly string[], end = 'test'): string[] =>
  names.map((name) => `${folder}/${name}.${end}`);

/** The portable suites. Each runs in a process, or a page, of its own. */
export const SUITES: Readonly<Record<string, readonly string[]>> = {
  core: named('core', [
    ...['deferral', 'huge-pages', 'queue', 'queue-load', 'memory', 'pagemap', 'pages', 'ranges'],
    ...['ranges-large', 'request', 'sources', 'transfer'],
  ]),
  trace: named('trace', ['basics', 'codec', 'damage', 'format', 'replay', 'summary']),
  // Each test asks both kernels. A stand-in replaces the real kernel, and leaves out what is asked of it.
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

/** The files that take longest. Of the library's forms, they run only in the bundle. */
export const LONG = [
  ...named('core', ['queue-load', 'ranges-large']),
  ...named('trace', ['damage', 'replay']),
  ...named('testing', ['simulate']),
];

/** Files that take minutes in a runtime, and are left out there. The traces of random worlds take their place. */
export const SLOW: Readonly<Record<string, readonly string[]>> = { Bun: named('testing', ['simulate']) };

/** Suites whose built files need stand-ins. Only the import map of a page can replace modules of built files. */
export const MAPPED = ['sim'];

/** Tests of the full library in each runtime: real.test, and those of Node's tests that hold there. */
export const FULL: Readonly<Record<string, readonly string[]>> = {
  Node: ['runtimes/real.test'],
  Deno: ['runtimes/real.test', 'uffd/open.test', 'uffd/contract.test'],
  Bun: [
    ...['runtimes/real.test', 'uffd/open.test', 'uffd/contract.test', 'dirty/tracker.test'],
    ...['uffd/operations.test', 'errors/provoked-errors.test'],
  ],
};
