// `uffd demo --record`, `replay`, `inspect` and `simulate`: a recording replays identically, for any user, and the
// figures printed for a trace are those of the run.

import { randomBytes } from 'node:crypto';
import { chmodSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { stripVTControlCharacters } from 'node:util';
import * as assert from 'uvu/assert';
import { suite } from '../support/harness.js';
import {
  fileOf,
  inDirectory,
  needKernel,
  needUnprivileged,
  type RunOptions,
  sha256,
  UNPRIVILEGED,
  uffd,
  uffdOnTerminal,
} from './support/command.js';

const test = suite('cli/trace');

const GREEN = '\u001b[32m';

/** Runs the command, which must succeed. Returns its output. */
async function good(args: string[], options: RunOptions = {}): Promise<string> {
  const { code, stdout, stderr } = await uffd(args, options);
  assert.is(code, 0, `${args.join(' ')}: ${stderr}${stdout}`);
  return stdout;
}

async function json(args: string[], options: RunOptions = {}): Promise<never> {
  return JSON.parse(await good([...args, '--json'], options)) as never;
}

interface Replayed {
  identical: boolean;
  faults: number;
  records: number;
  difference: { expected: string; came: string; fault: object | null } | null;
  damage: string | null;
}

test('the demo with 1, 8 and 32 threads, in every way of waiting: recorded, replayed, inspected', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const file = fileOf(directory, 'file', randomBytes(2_000_000));
    const trace = join(directory, 'trace');
    for (const [wait, ...counts] of [
      ['poll', '8'],
      ['block', '32'],
      ['spin', '8'],
      ['adaptive', '1', '32'],
    ] as const) {
      for (const threads of counts) {
        const args = ['demo', file, '--wait', wait, '--threads', threads, '--record', trace];
        const report: {
          faults: number;
          pages: number;
          trace: { records: number; bytes: number; failure: null };
        } = await json(args);
        assert.is(report.trace.failure, null);
        const replayed: Replayed = await json(['replay', trace]);
        assert.ok(replayed.identical && replayed.damage === null && replayed.difference === null);
        assert.is(replayed.faults, report.faults);
        // The trace's description and its end are records, but no calls.
        assert.is(replayed.records, report.trace.records - 2);
        const summary: Record<string, unknown> = await json(['inspect', trace]);
        assert.is(summary.faults, report.faults);
        assert.is(summary.pages, report.pages);
        assert.is(summary.bytes, report.trace.bytes);
        assert.is(summary.unresolved, 0);
        assert.equal((summary.about as { threads: number }).threads, Number(threads));
        assert.not('damage' in summary);
      }
    }
  });
}, 240_000);

test('a window of pages, recorded and replayed', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const trace = join(directory, 'trace');
    const file = fileOf(directory, 'file', randomBytes(3_000_000));
    await good(['demo', file, '--window', '16', '--threads', '4', '-r', trace]);
    assert.match(await good(['replay', trace]), /^identical: [\d,]+ records, [\d,]+ faults, in \d+ ms/);
  });
});

test('a user who may not open a userfaultfd records on the simulated kernel, and replays any trace', async () => {
  needKernel();
  needUnprivileged();
  await inDirectory(async (directory) => {
    chmodSync(directory, 0o777);
    const file = fileOf(directory, 'file', randomBytes(400_000));
    const real = join(directory, 'real');
    await good(['demo', file, '--record', real]);
    assert.match(await good(['replay', real], { under: UNPRIVILEGED }), /^identical/);
    for (const wait of ['poll', 'block', 'spin', 'adaptive']) {
      const trace = join(directory, `simulated-${wait}`);
      const options = { preload: './seccomp.js', under: UNPRIVILEGED };
      const args = ['demo', file, '--json', '--wait', wait, '--seed', '5', '--record', trace];
      const ended = await uffd(args, options);
      assert.is(ended.code, 0, ended.stderr);
      const report = JSON.parse(ended.stdout);
      assert.equal([report.kernel, report.verified], ['simulated', report.pages]);
      assert.match(await good(['replay', trace]), /^identical/);
    }
  });
}, 120_000);

test('a trace that cannot be written: at once where it cannot be opened; later with a warning, and the demo goes on', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const file = fileOf(directory, 'file', randomBytes(400_000));
    const refused = await uffd(['demo', file, '--record', join(directory, 'missing/trace')]);
    assert.is(refused.code, 1);
    assert.match(refused.stderr, /^uffd: ENOENT[^\n]*\n$/);
    assert.is(refused.stdout, '');
    const full = await uffd(['demo', file, '--json', '--record', '/dev/full']);
    assert.is(full.code, 1);
    const report = JSON.parse(full.stdout);
    assert.ok(report.equal && report.verified === report.pages);
    // Without a trace, there are no pages to prefetch.
    assert.is(report.prefetched, null);
    assert.match(report.trace.failure, /ENOSPC/);
    assert.match(full.stderr, /the recording of a trace has ended: ENOSPC/);
  });
});

const HANDLER = `export default (uffd, { about }) => {
  if (about.command !== 'simulate') throw new Error('another command');
  const bytes = new Uint8Array(uffd.pageSize);
  return {
    pagefault({ page }) {
      if (uffd.pageState(page) === 'removed') return uffd.zero(page, uffd.pageSize) === uffd.pageSize;
      return uffd.copy(page, bytes) === uffd.pageSize;
    },
    removed() {},
  };
};`;

test('a handler of a module: the same, or the first call that differs and the fault it is about', async () => {
  await inDirectory(async (directory) => {
    const at = (name: string): string => join(directory, name);
    await good(['simulate', '--seed', '3', '--record', at('trace')]);
    writeFileSync(at('same.mjs'), HANDLER);
    writeFileSync(at('other.mjs'), HANDLER.replace("=== 'removed'", "=== 'never'"));
    assert.match(await good(['replay', at('trace'), '--handler', at('same.mjs')]), /^identical/);
    const other = await uffd(['replay', at('trace'), '--handler', at('other.mjs')]);
    assert.is(other.code, 1, other.stderr);
    assert.match(
      other.stdout,
      /^DIFFERENT at record [\d,]+\nexpected {2}zero\(.*\ncame {6}copy\(.*\nfault {5}\w+ of 0x/,
    );
    assert.match(other.stdout, /\nbefore it\n( +[\d,]+ {2}.+\n){8}$/);
    const ended = await uffd(['replay', at('trace'), '--handler', at('other.mjs'), '--json']);
    assert.is(ended.code, 1);
    const { identical, difference } = JSON.parse(ended.stdout) as Replayed;
    assert.not(identical);
    assert.match(difference?.expected as string, /^zero/);
    assert.ok(difference?.fault);
  });
});

test('modules that make no handler are refused', async () => {
  await inDirectory(async (directory) => {
    const at = (name: string): string => join(directory, name);
    await good(['simulate', '--seed', '3', '--steps', '50', '--record', at('trace')]);
    for (const [text, code, message] of [
      ['export const handler = 1;', 2, /the default export of .*m0\.mjs must be a function/],
      ['export default () => ({});', 1, /must return a handler with pagefault/],
      ["throw Object.assign(new Error('not today'), { code: 'ERR_TODAY' });", 1, /^uffd: not today\n$/],
      ["import 'no-such-package'; export default () => ({ pagefault() {} });", 2, /no-such-package/],
    ] as const) {
      const module = at('m0.mjs');
      writeFileSync(module, text);
      const ended = await uffd(['replay', at('trace'), '--handler', module]);
      assert.is(ended.code, code, ended.stderr);
      assert.match(ended.stderr, message);
      assert.is(ended.stdout, '');
    }
  });
});

test('a file that is no trace is refused; a truncated trace is shown as far as it goes', async () => {
  await inDirectory(async (directory) => {
    const at = (name: string): string => join(directory, name);
    fileOf(directory, 'other', randomBytes(1000));
    fileOf(directory, 'empty', new Uint8Array());
    for (const command of ['replay', 'inspect']) {
      for (const [name, message] of [
        ['missing', /^uffd: ENOENT[^\n]*missing[^\n]*\n$/],
        ['other', /^uffd: [^\n]*other: this is no trace[^\n]*\n$/],
        ['empty', /^uffd: [^\n]*empty: this is no trace[^\n]*\n$/],
        ['.', /^uffd: EISDIR[^\n]*\n$/],
      ] as const) {
        const { code, stdout, stderr } = await uffd([command, at(name)]);
        assert.is(code, 1);
        assert.match(stderr, message);
        assert.is(stdout, '');
      }
    }
    await good(['simulate', '--seed', '1', '--steps', '40000', '--record', at('trace')]);
    truncateSync(at('trace'), readFileSync(at('trace')).length - 5);
    const replayed = await uffd(['replay', at('trace')]);
    assert.is(replayed.code, 1);
    assert.match(replayed.stdout, /^identical as far as it can be read: .*\nNOT WHOLE: it is cut or damaged/);
    const inspected = await uffd(['inspect', at('trace')]);
    assert.is(inspected.code, 1);
    assert.match(inspected.stdout, /NOT WHOLE: it is cut or damaged behind block \d/);
    const listed = await uffd(['inspect', at('trace'), '--list']);
    assert.is(listed.code, 1);
    assert.match(listed.stderr, /^uffd: .* is not whole: it is cut or damaged[^\n]*\n$/);
  });
});

test('the list and its filters', async () => {
  await inDirectory(async (directory) => {
    const trace = join(directory, 'trace');
    await good(['simulate', '--seed', '8', '--steps', '2000', '--record', trace]);
    const lines = async (...args: string[]): Promise<string[]> =>
      (await good(['inspect', trace, ...args])).split('\n').slice(0, -1);
    const all = await lines('--list');
    for (const line of all) assert.match(line, /^ *\d+ +\d+\.\d{3} {2}\S/);
    const indices = all.map((line) => Number(line.slice(0, 9)));
    assert.equal(
      indices,
      indices.map((_, index) => index),
    );
    assert.equal(await lines('--limit', '7'), all.slice(0, 7));
    assert.equal(await lines('--limit', '0'), []);
    const zeros = await lines('--kind', 'zeropage');
    assert.ok(zeros.length > 0 && zeros.every((line) => line.includes('ZEROPAGE(')));
    assert.equal(
      zeros,
      all.filter((line) => line.includes('ZEROPAGE(')),
    );
    assert.equal(
      await lines('--kind', 'change,answer'),
      all.filter((line) => / {2}the handler|: .*remove 0x/.test(line)),
    );
    // The first page of some remove event.
    const page = /remove (0x[0-9a-f]+)-/.exec(
      all.find((line) => line.includes('remove 0x')) as string,
    )?.[1] as string;
    const about = await lines('--page', page);
    assert.ok(about.length > 3 && about.length < all.length);
    assert.ok(
      all
        .filter((line) => line.includes(`${page},`) || line.includes(`of ${page}`))
        .every((line) => about.includes(line)),
    );
    const end = `0x${(BigInt(page) + 4096n).toString(16)}`;
    assert.equal(await lines('--range', `${page}-${end}`), about);
    const timed = await lines('--from', '0.1', '--to', '0.2');
    assert.equal(
      timed,
      all.filter((line) => Number(line.slice(10, 22)) >= 0.1 && Number(line.slice(10, 22)) <= 0.2),
    );
    const objects = (await lines('--list', '--json', '--limit', '20')).map((line) => JSON.parse(line));
    assert.equal(
      objects.map(({ index }) => index),
      indices.slice(0, 20),
    );
    for (const one of objects)
      assert.equal(Object.keys(one), ['index', 'timeUs', 'name', 'text', 'messages']);
  });
});

test('a reader of the list that leaves is no failure', async () => {
  await inDirectory(async (directory) => {
    const trace = join(directory, 'trace');
    await good(['simulate', '--seed', '8', '--steps', '100000', '--record', trace]);
    const gone = await uffd(['inspect', trace, '--list'], {
      under: ['sh', '-c', '("$@"; echo "code $?" >&2) | head -1', 'sh'],
    });
    assert.match(gone.stderr, /code 0\n$/);
  });
});

test('simulate: one seed, one run, one trace; every field is printed', async () => {
  await inDirectory(async (directory) => {
    const at = (name: string): string => join(directory, name);
    const args = ['simulate', '--seed', '11', '--steps', '5000'];
    interface Simulated {
      seed: number;
      equal: boolean;
      removals: number;
      offered: number;
      summary: { faults: number; changes: { remove: number }; records: number };
    }
    const first: Simulated = await json([...args, '--record', at('a')]);
    await good([...args, '--record', at('b')]);
    assert.is(sha256(at('a')), sha256(at('b')));
    assert.ok(first.equal && first.seed === 11);
    assert.is(first.summary.changes.remove, first.removals);
    assert.ok(first.offered >= first.summary.faults - 10 && first.summary.faults > 100);
    const other: Simulated = await json(['simulate', '--steps', '500']);
    assert.ok(other.equal && Number.isInteger(other.seed));
    const text = await good([...args, '--log']);
    assert.ok(text.split('\n').length > 5000);
    assert.match(text, /^verdict +every read found what it had to$/m);
    const help = (await good(['simulate', '--help'])).split(/\s+/);
    for (const field of Object.keys(first))
      assert.ok(
        help.some((word) => word.replace(':', '') === field),
        field,
      );
  });
});

test('on a terminal: a bar for a long replay, a frame for a summary, colours', async () => {
  await inDirectory(async (directory) => {
    const trace = join(directory, 'trace');
    await good(['simulate', '--seed', '2', '--steps', '400000', '--record', trace]);
    const replayed = await uffdOnTerminal(['replay', trace], 80);
    assert.is(replayed.code, 0);
    assert.match(replayed.stdout, /█.*% [\d,]+ calls\/s/);
    assert.ok(replayed.stdout.includes(`${GREEN}identical`));
    const inspected = await uffdOnTerminal(['inspect', trace], 60);
    const frame = stripVTControlCharacters(inspected.stdout)
      .split('\r\n')
      .filter((line) => line.includes('│'));
    assert.ok(frame.length > 10);
    for (const line of frame) assert.ok(line.length <= 60, line);
  });
}, 120_000);

test.run();
