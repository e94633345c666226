// Recording does not change a session: it has the same sources, window and wait strategy. Its trace replays identically
// after the memory file is gone.

import { strict as assert } from 'node:assert';
import { ftruncateSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import type { ServeOptions } from '../../src/serve/index.js';
import { Kind, replay, summarize, TraceReader } from '../../src/trace/index.js';
import { inDirectory } from '../cli/support/command.js';
import { suite } from '../support/harness.js';
import { withHugePages } from '../support/huge-pages.js';
import { P, type Scene, serving, until } from './support/server.js';

const test = suite('serve/trace-replay');

/** A memory file whose middle third is a hole. */
function sparse(directory: string, bytes: number): string {
  const path = join(directory, 'sparse');
  const fd = openSync(path, 'w');
  ftruncateSync(fd, bytes);
  const third = Buffer.alloc(Math.floor(bytes / 3 / P) * P, 7);
  writeSync(fd, third, 0, third.length, 0);
  writeSync(fd, third, 0, third.length, bytes - third.length);
  return path;
}

/** Runs a guest that touches all of its pages and removes some, twice. */
async function run({ guest, server }: Scene, pages: number): Promise<void> {
  const monitor = await guest({ regions: 2 });
  for (const seed of [1, 2]) {
    const { wrongCount, wrong } = await monitor.touch({ threads: 4, order: 'random', seed, writes: 3 });
    assert.equal(wrongCount, 0, wrong.join('\n'));
    await monitor.remove(Math.floor(pages / 4), Math.floor(pages / 2));
  }
  await monitor.end();
  await until(() => server.sessions.size === 0);
}

/** Counts the faults for which the handler was called, and all faults. */
function counted(trace: string): { asked: number; faults: number } {
  const reader = TraceReader.fromFile(trace);
  let asked = 0;
  while (reader.next()) if (reader.codec.kind === Kind.NOTE + 15 && reader.codec.number(0) < 2) asked++;
  reader.close();
  return { asked, faults: summarize(TraceReader.fromFile(trace)).faults };
}

const SMALL = { pages: 300, pageSize: P };
const HUGE = { pages: 9, pageSize: 2 ** 21 };

for (const [name, options, size] of [
  ['the defaults', {}, SMALL],
  ['a window', { window: 16 }, SMALL],
  ['an adaptive window', { window: 'adaptive' }, SMALL],
  ['everything in the background', { eager: true }, SMALL],
  ['a wait that sleeps', { wait: 'block' }, SMALL],
  ['pages of 2 MiB', {}, HUGE],
] as readonly [string, Partial<ServeOptions>, typeof SMALL][]) {
  const body = (): Promise<void> =>
    inDirectory(async (directory) => {
      const [first, second] = [join(directory, 'first'), join(directory, 'second')];
      const memory = (folder: string): string => sparse(folder, size.pages * size.pageSize);
      await serving({ ...size, ...options, memory, record: first }, (scene) => run(scene, size.pages));
      const prefetch = { prefetch: [first], force: true };
      await serving({ ...size, ...options, ...prefetch, memory, record: second }, (scene) =>
        run(scene, size.pages),
      );
      for (const trace of [first, second]) {
        const { identical, difference, damage } = await replay(TraceReader.fromFile(trace));
        assert.deepEqual(
          { identical, difference, damage },
          { identical: true, difference: undefined, damage: undefined },
        );
      }
      if (size === HUGE) return;
      // When a session is recorded, sources still answer faults without the handler.
      const { asked, faults } = counted(first);
      assert.ok(faults > 5 && asked < faults, `the handler was asked ${asked} of ${faults} faults`);
    });
  test(`with ${name}`, () => (size === HUGE ? withHugePages(2 * size.pages + 2, body) : body()), 120_000);
}

test.run();
