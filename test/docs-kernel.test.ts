// docs/kernel.md and test/semantics/ match: each test that the page links is in the file that the link names, and the
// page links each test of that folder. A `*` in a link matches any part of an id.
//
// The test files list their ids and run no test if UFFD_LIST_IDS is set, so this test needs no kernel.

import { strict as assert } from 'node:assert';
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { suite } from './support/harness.js';

const test = suite('docs/kernel');
const root = fileURLToPath(new URL('../../', import.meta.url));
const built = fileURLToPath(new URL('./semantics/', import.meta.url));
const page = readFileSync(join(root, 'docs/kernel.md'), 'utf8');

const FOLDER = '../test/semantics/';
const LINE_MOST = 120;

/** The ids of each file of test/semantics/, by the name of its source. */
function idsByFile(): Map<string, string[]> {
  const files = readdirSync(built).filter((file) => file.endsWith('.test.js'));
  const urls = files.map((file) => pathToFileURL(join(built, file)).href);
  const script = `for (const url of ${JSON.stringify(urls)}) await import(url);`;
  const lines = execFileSync(process.execPath, ['--input-type=module', '--eval', script], {
    encoding: 'utf8',
    env: { ...process.env, UFFD_LIST_IDS: '1' },
  });
  const lists = lines.trim().split('\n');
  assert.equal(lists.length, files.length, 'each file lists its ids on a line');
  return new Map(
    files.map((file, index) => [basename(file, '.js'), JSON.parse(lists[index] ?? '') as string[]]),
  );
}

/** The files of the page's labels: `[label]: ../test/semantics/FILE.ts` at its end. */
function filesByLabel(): Map<string, string> {
  const definitions = page.matchAll(/^\[([a-z-]+)\]: (\S+)$/gm);
  return new Map(
    [...definitions].map(([, label = '', target = '']) => {
      assert.ok(target.startsWith(FOLDER) && target.endsWith('.ts'), `${label}: ${target}`);
      return [label, basename(target, '.ts')];
    }),
  );
}

interface Link {
  /** An id, or a pattern with `*`. */
  readonly id: string;
  readonly label: string;
}

/** Links of the form [`id`][label]. */
const links: Link[] = [...page.matchAll(/\[`([^`]+)`\]\[([^\]]*)\]/g)].map(([, id = '', label = '']) => ({
  id,
  label,
}));

/** The ids that a link matches. */
function covered({ id }: Link, ids: readonly string[]): string[] {
  const pattern = new RegExp(`^${id.replaceAll('.', '\\.').replaceAll('*', '.*')}$`);
  return ids.filter((one) => pattern.test(one));
}

const ids = idsByFile();
const labels = filesByLabel();

test('every link to test/semantics was understood', () => {
  assert.ok(links.length > 0);
  for (const { id, label } of links) {
    assert.ok(labels.has(label), `${id}: [${label}] leads nowhere`);
    assert.match(id, /^[a-z0-9*][a-z0-9*.-]+$/, `${id} is not an id, nor a pattern of one`);
  }
  const used = new Set(links.map(({ label }) => label));
  assert.deepEqual(
    [...labels.keys()].filter((label) => !used.has(label)).sort(),
    [],
    'labels without a link',
  );
  const inline = page.split('\n').filter((line) => line.includes(FOLDER) && !/^\[[a-z-]+\]: /.test(line));
  assert.deepEqual(inline, [], 'links are written [`id`][label]');
});

test('each id that docs/kernel.md links is a test of the file that it links to', () => {
  for (const link of links) {
    const file = labels.get(link.label) ?? '';
    assert.ok(covered(link, ids.get(file) ?? []).length > 0, `${file}.ts has no test ${link.id}`);
  }
});

test('a pattern says more than one word of what it stands for', () => {
  for (const { id } of links.filter((link) => link.id.includes('*'))) {
    const words = id.split('.').filter((word) => word !== '*');
    assert.ok(words.length >= 2, `${id} stands for too much`);
  }
});

test('each test of test/semantics is linked from docs/kernel.md', () => {
  const left: string[] = [];
  for (const [file, all] of ids) {
    const found = links
      .filter(({ label }) => labels.get(label) === file)
      .flatMap((link) => covered(link, all));
    left.push(...all.filter((id) => !found.includes(id)));
  }
  assert.deepEqual(left, []);
});

/** The anchor of a heading. */
function anchorOf(heading: string): string {
  return heading
    .toLowerCase()
    .replace(/[^\p{L}\p{N} _-]/gu, '')
    .replaceAll(' ', '-');
}

test('the page leads to its own headings, each of which is in its table of contents', () => {
  const headings = [...page.matchAll(/^##+ (.+)$/gm)].map(([, heading = '']) => anchorOf(heading));
  assert.equal(new Set(headings).size, headings.length, 'a heading for each anchor');
  const anchors = [...page.matchAll(/\]\(#([^)]+)\)/g)].map(([, anchor = '']) => anchor);
  assert.deepEqual([...new Set(anchors)].sort(), headings.filter((one) => one !== 'contents').sort());
});

test('its lines fit the width of a terminal', () => {
  const long = page.split('\n').filter((line) => [...line].length > LINE_MOST);
  assert.deepEqual(long, []);
});

test.run();
