// `npm run suite -- hostile`: 100,000 tries of hostile clients against `uffd serve`, with a new server for every
// 10,000. The tests run a short form.
//
// UFFD_TRIES=N: number of tries; UFFD_SEED=N: seed; UFFD_FIRST=N: number of the first try; UFFD_KIND=NAME: only this
// kind of try; UFFD_KIND=each: so many tries of each kind, with a server of its own for each kind.

import { spawnSync } from 'node:child_process';
import { besiege } from './serve/support/hostile-clients.js';
import { seed } from './support/harness.js';
import { compileProgram } from './support/real-kernel.js';

const TRIES = Number(process.env.UFFD_TRIES ?? 100_000);
const A_SERVER = 10_000;
const BATCH = 1000;
/** Options of the servers, used in turn. */
const OPTIONS: readonly (readonly string[])[] = [
  [],
  ['--window', '16'],
  ['--window', 'adaptive', '--eager'],
  ['--on-error', 'leave'],
];

const start = seed();
const kind = process.env.UFFD_KIND;
const first = Number(process.env.UFFD_FIRST ?? 0);
// On a signal, exit normally: the exit listeners kill the programs that this process started.
for (const name of ['SIGINT', 'SIGTERM'] as const) process.once(name, () => process.exit(1));
const begun = performance.now();

if (kind === 'each') await playEach();
else {
  const kinds: Record<string, number> = {};
  for (let done = 0; done < TRIES; done += A_SERVER) {
    const all = await play(first + done, Math.min(A_SERVER, TRIES - done), kind);
    for (const [name, tries] of Object.entries(all.kinds)) kinds[name] = (kinds[name] ?? 0) + tries;
  }
  const seconds = Math.round((performance.now() - begun) / 1000);
  console.log(`${TRIES} tries of ${Object.keys(kinds).length} kinds in ${seconds} s: every invariant holds`);
}

function play(from: number, tries: number, only?: string): ReturnType<typeof besiege> {
  const options = OPTIONS[Math.floor(from / A_SERVER) % OPTIONS.length];
  return besiege({
    ...{ seed: start, first: from, tries, batch: Math.min(BATCH, tries) },
    ...(only === undefined ? {} : { kind: only }),
    ...(options ? { options } : {}),
    onProgress({ tries: done, killed, memory }) {
      if (only !== undefined && kind === 'each') return;
      const seconds = Math.round((performance.now() - begun) / 1000);
      const mib = (memory / 2 ** 20).toFixed(1);
      console.log(
        `${from + done} tries, ${killed} clients were killed, the server has ${mib} MiB; ${seconds} s`,
      );
    },
  });
}

async function playEach(): Promise<void> {
  const kinds = spawnSync(compileProgram('guest/hostile.c'), ['-l'], { encoding: 'utf8' }).stdout.split('\n');
  for (const name of kinds.filter(Boolean)) {
    const at = performance.now();
    const why = await play(first, TRIES, name).then(
      () => 'ok',
      (error: Error) => `FAILED: ${error.message}`,
    );
    console.log(`${name}: ${why} (${Math.round(performance.now() - at)} ms)`);
    if (why !== 'ok') process.exitCode = 1;
  }
}
