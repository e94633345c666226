// `uffd report` and `uffd inspect --perfetto`: the files they write, the traces they accept, and their messages.

import { randomBytes } from 'node:crypto';
import { existsSync, readFileSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import * as assert from 'uvu/assert';
import { suite } from '../support/harness.js';
import { fileOf, inDirectory, sha256, uffd, uffdOnTerminal } from './support/command.js';

const test = suite('cli/report-page');

/** Calls `body` with a trace in a directory that is removed afterwards. */
function withTrace(body: (directory: string, trace: string) => Promise<void>, steps = '3000'): Promise<void> {
  return inDirectory(async (directory) => {
    const trace = join(directory, 'run.trace');
    const { code, stderr } = await uffd(['simulate', '--seed', '4', '--steps', steps, '--record', trace]);
    assert.is(code, 0, stderr);
    await body(directory, trace);
  });
}

/** The trace that is embedded in a page. */
function traceIn(html: string): Buffer {
  const found =
    /<script type="application\/gzip" id="trace" data-name="[^"]*">([A-Za-z0-9+/=]*)<\/script>/.exec(html);
  return gunzipSync(Buffer.from(found?.[1] ?? '', 'base64'));
}

test('the page is named like the trace, lies where the command runs, and carries the trace', async () => {
  await withTrace(async (directory, trace) => {
    const ended = await uffd(['report', trace], { cwd: directory });
    assert.is(ended.code, 0, ended.stderr);
    assert.match(ended.stdout, /^run\.html: [\d,]+ faults, \d+\.\d KiB; open it in a browser\n$/);
    const html = readFileSync(join(directory, 'run.html'), 'utf8');
    assert.ok(traceIn(html).equals(readFileSync(trace)));
    assert.match(html, /<title>run\.trace: page faults<\/title>/);
    // A second run replaces the old page.
    const again = await uffd(['report', trace], { cwd: directory });
    assert.is(again.code, 0, again.stderr);
    const piped = await uffd(['report', trace, '--output', '-']);
    assert.is(piped.stdout, html);
    assert.is(piped.stderr, '');
  });
});

test('the page lets nothing in or out, and is small', async () => {
  await withTrace(async (_directory, trace) => {
    const { stdout } = await uffd(['report', trace, '-o', '-']);
    const policy = /http-equiv="Content-Security-Policy" content="([^"]*)"/.exec(stdout)?.[1] ?? '';
    assert.match(
      policy,
      /^default-src 'none'; script-src 'sha256-[^']+' 'wasm-unsafe-eval'; style-src 'unsafe-inline'; /,
    );
    assert.not.match(stdout, /<(?:script|img|link|iframe)[^>]+\b(?:src|href)="(?!data:,")/);
    const script = /<script type="module">([\s\S]*?)<\/script>/.exec(stdout)?.[1] ?? '';
    assert.ok(script.length > 50_000 && script.length <= 112_640, `${script.length}`);
    assert.ok(stdout.length - traceIn(stdout).length < 170_000, `${stdout.length}`);
  });
});

test('a name that is markup stays a name', async () => {
  await withTrace(async (directory, trace) => {
    const name = '"><script>alert(1)<\u002fscript>'.replaceAll('/', '\u2215');
    symlinkSync(trace, join(directory, name));
    const { stdout, code } = await uffd(['report', name, '-o', '-'], { cwd: directory });
    assert.is(code, 0);
    assert.match(stdout, /data-name="&quot;&gt;&lt;script&gt;/);
    assert.is(stdout.match(/<script/g)?.length, 4);
  });
});

test('a damaged trace makes a page of what lies before; it is said, and the exit code is 1', async () => {
  await withTrace(async (directory, trace) => {
    truncateSync(trace, readFileSync(trace).length - 5);
    const ended = await uffd(['report', trace], { cwd: directory });
    assert.is(ended.code, 1);
    assert.match(ended.stderr, /^uffd: [^\n]*run\.trace is not whole: it is cut or damaged[^\n]*\n$/);
    assert.match(ended.stdout, /^run\.html: /);
    assert.ok(existsSync(join(directory, 'run.html')));
  }, '40000');
});

test('what is no trace is refused, and so is a page in its place, or where none can be', async () => {
  await withTrace(async (directory, trace) => {
    const at = (name: string): string => join(directory, name);
    writeFileSync(at('other'), randomBytes(100));
    const before = sha256(trace);
    symlinkSync(trace, at('link'));
    const large = fileOf(directory, 'large', readFileSync(trace));
    truncateSync(large, 256 * 2 ** 20 + 1);
    const cases: [args: string[], code: number, message: RegExp][] = [
      [['report', at('missing')], 1, /^uffd: ENOENT[^\n]*missing[^\n]*\n$/],
      [['report', at('other')], 1, /^uffd: [^\n]*other: this is no trace[^\n]*\n$/],
      [['report', trace, '-o', trace], 2, /^uffd: [^\n]* is the trace itself\n$/],
      [['report', trace, '-o', at('link')], 2, /^uffd: [^\n]* is the trace itself\n$/],
      [['report', trace, '-o', at('none/x.html')], 1, /^uffd: ENOENT[^\n]*\n$/],
      [
        ['report', large],
        1,
        /^uffd: [^\n]*large has 256\.0 MiB, and a page can hold 256\.0 MiB; [^\n]*--perfetto/,
      ],
      [['inspect', trace, '--perfetto', trace], 2, /^uffd: [^\n]* is the trace itself\n$/],
      [['inspect', trace, '--perfetto', at('none/x.json')], 1, /^uffd: ENOENT[^\n]*\n$/],
    ];
    for (const [args, code, message] of cases) {
      const ended = await uffd(args, { cwd: directory });
      assert.is(ended.code, code, `${args.join(' ')}: ${ended.stderr}`);
      assert.match(ended.stderr, message);
      assert.is(ended.stdout, '');
    }
    assert.is(sha256(trace), before);
  });
});

test('a full disk is reported', async () => {
  if (!existsSync('/dev/full')) return;
  await withTrace(async (_directory, trace) => {
    for (const args of [
      ['report', trace, '-o', '/dev/full'],
      ['inspect', trace, '--perfetto', '/dev/full'],
    ]) {
      const { code, stderr } = await uffd(args);
      assert.is(code, 1);
      assert.match(stderr, /^uffd: ENOSPC[^\n]*\n$/);
    }
  });
});

test('for Perfetto: to a file and to stdout the same, whose faults are those of the summary', async () => {
  await withTrace(async (directory, trace) => {
    const json = join(directory, 'run.json');
    const ended = await uffd(['inspect', trace, '--perfetto', json]);
    assert.equal(ended, { code: 0, stdout: '', stderr: '' });
    const text = readFileSync(json, 'utf8');
    assert.is((await uffd(['inspect', trace, '--perfetto', '-'])).stdout, text);
    const { traceEvents } = JSON.parse(text) as { traceEvents: { ph: string }[] };
    const { faults } = JSON.parse((await uffd(['inspect', trace, '--json'])).stdout);
    assert.is(traceEvents.filter(({ ph }) => ph === 'X' || ph === 'b').length, faults);
    truncateSync(trace, readFileSync(trace).length - 5);
    const cut = await uffd(['inspect', trace, '--perfetto', '-']);
    assert.is(cut.code, 1);
    assert.match(cut.stderr, /is not whole/);
    assert.ok(JSON.parse(cut.stdout).otherData.damage);
  }, '40000');
});

test('a reader of stdout that leaves is no failure', async () => {
  await withTrace(async (_directory, trace) => {
    for (const args of [
      ['inspect', trace, '--perfetto', '-'],
      ['report', trace, '-o', '-'],
    ]) {
      const gone = await uffd(args, { under: ['sh', '-c', '("$@"; echo "code $?" >&2) | head -c 10', 'sh'] });
      assert.match(gone.stderr, /^code 0\n$/, args[0]);
    }
  }, '40000');
});

test('on a terminal a long trace has a bar', async () => {
  await withTrace(async (directory, trace) => {
    const { code, stdout } = await uffdOnTerminal(['report', trace], 80, { cwd: directory });
    assert.is(code, 0);
    assert.match(stdout, /█.*% [\d,]+ calls\/s/);
    assert.match(stdout, /run\.html: /);
  }, '300000');
});

test.run();
