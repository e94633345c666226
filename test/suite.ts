// `npm run suite -- NAME […]`: suites that `npm test` does not run, because each takes minutes.
//
//   mutants             for each deliberate fault in the core, a test must fail
//   nodes [SEEDS]       other versions of Node
//   runtimes [WORD…]    Deno, Bun and Chromium
//   hostile             a hundred thousand hostile clients of `uffd serve`

const SUITES: Record<string, () => Promise<unknown>> = {
  mutants: () => import('./mutants.js'),
  nodes: () => import('./nodes.js'),
  runtimes: () => import('./runtimes.js'),
  hostile: () => import('./hostile.js'),
};

const [name = ''] = process.argv.splice(2, 1);
const run = SUITES[name];
if (run) await run();
else {
  console.error(`npm run suite -- ${Object.keys(SUITES).join(' | ')}`);
  process.exitCode = 2;
}
