// docs/linux.md is complete and true: it has a row for each of the kernel's names in assembly/abi.ts, its kernel
// versions equal those of src/kernel/features.ts, and each test that it names exists. Links between the documents have
// targets, and every document can be reached. ARCHITECTURE.md names only folders, files and functions that exist.

import { strict as assert } from 'node:assert';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { FEATURES, featureSince } from '../src/kernel/features.js';
import { anchorsOf, documents, linksOf, root, textOf } from './support/documents.js';
import { suite } from './support/harness.js';

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
  ...table.matchAll(/^\| `([^`]+)` \| ([^|]+) \| ([^|]+) \| `test\/([^`]+)`: (.+) \|$/gm),
].map(([, kernel = '', since = '', ours = '', file = '', name = '']) => ({
  kernel,
  since,
  ours,
  file,
  name,
}));

/** Names of the kernel's header that a program passes or receives; without bit numbers and errnos. */
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
  // Checks that the search finds anything: docs/kernel.md, ABI, has these numbers.
  assert.deepEqual(
    kinds.map((kind) => names.filter((name) => kind.test(name)).length),
    [10, 13, 17, 5, 3],
  );
  const ways = ['userfaultfd(2)', '/dev/userfaultfd'];
  assert.deepEqual(rows.map(({ kernel }) => kernel).sort(), [...names, ...ways].sort());
});

test('features are named as here, with the kernel that brought them', () => {
  const prefix = 'UFFD_FEATURE_';
  const documented = rows.filter(({ kernel }) => kernel.startsWith(prefix));
  const expected = FEATURES.map((name) => [
    prefix + name.toUpperCase().replaceAll('-', '_'),
    featureSince(name),
    `\`${name}\``,
  ]);
  assert.deepEqual(
    documented.map(({ kernel, since, ours }) => [kernel, since, ours]),
    expected,
  );
});

/** Patterns of a test file's test names: a template's placeholder matches any text. */
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

/** The names that ARCHITECTURE.md sets in code font. */
const named = [...textOf('ARCHITECTURE.md').matchAll(/`([^`\n]+)`/g)].map(([, name = '']) => name);

test('ARCHITECTURE.md has a row for each folder of sources, each row a folder, and the page is short', () => {
  const architecture = textOf('ARCHITECTURE.md');
  assert.ok(Buffer.byteLength(architecture) <= 5000, `${Buffer.byteLength(architecture)} bytes`);
  const rows = [...architecture.matchAll(/^\| `([^`]+\/)` \|/gm)].map(([, name = '']) => name);
  const below = readdirSync(join(root, 'src'), { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map(({ name }) => `src/${name}/`);
  assert.deepEqual(rows.sort(), ['assembly/', 'shim/', ...below].sort());
});

test('the files and functions that ARCHITECTURE.md names are there', () => {
  const files = named.filter((name) => /\.ts$/.test(name));
  assert.ok(files.length > 5);
  for (const file of files) assert.ok(existsSync(join(root, file)), file);
  const sources = ['assembly', 'src/uffd'].flatMap((folder) =>
    readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
      .filter((name) => name.endsWith('.ts'))
      .map((name) => textOf(join(folder, name))),
  );
  const functions = named.filter((name) => /^[a-z]+[A-Z]\w*$|^[A-Z][a-z]+[A-Z]\w*$/.test(name));
  assert.ok(functions.length > 5);
  for (const name of functions)
    assert.ok(
      sources.some((text) => new RegExp(`\\b${name}\\b`).test(text)),
      `nothing is called ${name}`,
    );
});

test.run();
