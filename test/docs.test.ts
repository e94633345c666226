// docs/linux.md is complete and true: it has a row for everything of the kernel's that assembly/abi.ts knows, names
// the kernel that brought each feature as src/features.ts does, and each test that it names is there. And links
// between the documents lead somewhere, each can be reached, and ARCHITECTURE.md has a place for every source.

import { strict as assert } from 'node:assert';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { FEATURES, featureSince } from '../src/features.js';
import { anchorsOf, documents, linksOf, root, textOf } from './documents.js';
import { suite } from './harness.js';

const test = suite('docs');

/** Rows of docs/linux.md. */
interface Row {
  kernel: string;
  since: string;
  ours: string;
  /** A file below test/, and the name of a test in it. */
  file: string;
  name: string;
}

const table = textOf('docs/linux.md');
const rows: Row[] = [
  ...table.matchAll(/^\| `([^`]+)` \| ([^|]+) \| ([^|]+) \| \[[^\]]+\]\(\.\.\/test\/([^)]+)\): (.+) \|$/gm),
].map(([, kernel = '', since = '', ours = '', file = '', name = '']) => ({
  kernel,
  since,
  ours,
  file,
  name,
}));

/** Exported names of the kernel's header that a program chooses or is told; bit numbers and errnos are neither. */
function exported(): string[] {
  const names = [...textOf('assembly/abi.ts').matchAll(/^export const (\w+):/gm)].map(
    ([, name = '']) => name,
  );
  return names.filter((name) => /^(UFFD|USERFAULTFD|O)_|^UFFDIO_/.test(name));
}

test('every row of docs/linux.md was understood', () => {
  const lines = table.split('\n').filter((line) => line.startsWith('| `'));
  assert.equal(rows.length, lines.length);
});

test('docs/linux.md has a row for each operation, mode, feature, event and flag, once', () => {
  const names = exported();
  const kinds = [
    /^UFFDIO_[A-Z]+$/,
    /^UFFDIO_\w+_MODE_/,
    /^UFFD_FEATURE_/,
    /^UFFD_EVENT_/,
    /^UFFD_PAGEFAULT_FLAG_/,
  ];
  // That what is looked for was found at all: the numbers of kernel-semantics, ABI.
  assert.deepEqual(
    kinds.map((kind) => names.filter((name) => kind.test(name)).length),
    [10, 13, 17, 5, 3],
  );
  const ways = ['userfaultfd(2)', '/dev/userfaultfd'];
  assert.deepEqual(rows.map(({ kernel }) => kernel).sort(), [...names, ...ways].sort());
});

test('features are named as here, with the kernel that brought them', () => {
  const prefix = 'UFFD_FEATURE_';
  const told = rows.filter(({ kernel }) => kernel.startsWith(prefix));
  const expected = FEATURES.map((name) => [
    prefix + name.toUpperCase().replaceAll('-', '_'),
    featureSince(name),
    `\`${name}\``,
  ]);
  assert.deepEqual(
    told.map(({ kernel, since, ours }) => [kernel, since, ours]),
    expected,
  );
});

/** What a test file calls its tests; what is filled in when it runs stands for anything. */
function testNamesOf(file: string): RegExp[] {
  const literals = textOf(join('test', file)).matchAll(/\btest\(\s*(['"`])((?:\\.|(?!\1).)*)\1/g);
  return [...literals].map(([, , text = '']) => {
    const parts = text.replace(/\\(.)/g, '$1').split(/\$\{[^}]*\}/);
    return new RegExp(`^${parts.map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')).join('.*')}$`);
  });
}

test('each test that docs/linux.md names is there', () => {
  for (const { kernel, file, name } of rows) {
    assert.ok(existsSync(join(root, 'test', file)), `${kernel}: test/${file}`);
    const found = testNamesOf(file).some((pattern) => pattern.test(name));
    assert.ok(found, `${kernel}: test/${file} has no test '${name}'`);
  }
});

test('links between documents lead to files, and to headings, that are there', () => {
  for (const document of documents()) {
    for (const { target, anchor } of linksOf(document)) {
      assert.ok(existsSync(join(root, target)), `${document} links to ${target}`);
      if (anchor !== undefined)
        assert.ok(anchorsOf(target).has(anchor), `${document} links to ${target}#${anchor}`);
    }
  }
});

test('every document can be reached from README.md', () => {
  const reached = new Set(['README.md']);
  for (const document of reached) {
    if (!document.endsWith('.md')) continue;
    for (const { target } of linksOf(document)) reached.add(target);
  }
  assert.deepEqual(
    documents().filter((document) => !reached.has(document)),
    [],
  );
});

test('every source has a row in the table of ARCHITECTURE.md, and every row its source', () => {
  const rooms = [...textOf('ARCHITECTURE.md').matchAll(/^\| (`[^|]+`) \|/gm)].flatMap(([, cell = '']) =>
    [...cell.matchAll(/`([^`]+)`/g)].map(([, name = '']) => name),
  );
  assert.ok(rooms.length > 40);
  for (const room of rooms) assert.ok(existsSync(join(root, room)), room);
  const sources = ['assembly', 'shim', 'src'].flatMap((folder) =>
    readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' }).map((name) => `${folder}/${name}`),
  );
  const homeless = sources.filter(
    (source) =>
      source.endsWith('.ts') &&
      !rooms.some((room) => source === room || (room.endsWith('/') && source.startsWith(room))),
  );
  assert.deepEqual(homeless, []);
});

test.run();
