// The test files that any runtime can run, by folder. What is not here asks the real kernel, Node's test runners or
// other processes in every test; Node's own run has it.

/** In every artefact. */
export const PORTABLE = [
  ...[
    'deferral',
    'huge-pages',
    'inbox',
    'inbox-load',
    'memory',
    'pagemap',
    'pages',
    'ranges',
    'ranges-large',
  ],
  ...['request', 'sources', 'transfer'],
]
  .map((name) => `core/${name}.test`)
  .concat(['basics', 'codec', 'damage', 'format', 'replay', 'summary'].map((name) => `trace/${name}.test`))
  .concat(['page-sizes', 'simulate', 'random'].map((name) => `testing/${name}.test`));

/** Of both kernels: the real one is left out, so its place has to be taken. */
export const SIMULATED = [
  ...[
    'arguments',
    'copy',
    'events',
    'fills',
    'messages',
    'move',
    'order',
    'pages',
    'registration',
    'release',
  ],
  ...['scan', 'touch', 'write-protect'],
].map((name) => `semantics/${name}.once.test`);

/** Takes half a minute. */
export const LONG = ['testing/broken.once.test'];
