// The error catalog has all rows of docs/errors.md, from which it is generated. The library has a name for each errno
// in the catalog, and the catalog has each call that an error names.

import { strict as assert } from 'node:assert';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { REASONS } from '../../src/bindings/errors.js';
import { ANY_CALL, formatted, reasonFor, rowsOf } from '../../src/errors/catalog.js';
import { Errno, UffdError } from '../../src/errors/errors.js';
import { suite } from '../support/harness.js';

const test = suite('errors/catalog');
const root = fileURLToPath(new URL('../../../', import.meta.url));
const docs = readFileSync(join(root, 'docs/errors.md'), 'utf8');

/** One row of docs/errors.md. */
type Row = [call: string, code: string, cause: string, remedy: string];

function rowsOfDocs(): Row[] {
  return docs.split(/^## /m).flatMap((section) => {
    const call = section.slice(0, section.indexOf('\n'));
    const rows = section.matchAll(/^\| (E[A-Z0-9]+) \| (?:.*\| )?(.*) \| (.*) \|$/gm);
    return [...rows].map(([, code = '', cause = '', remedy = '']): Row => [call, code, cause, remedy]);
  });
}

function rowsOfTable(): Row[] {
  return Object.entries(REASONS).flatMap(([call, codes]) =>
    Object.keys(codes).flatMap((code) =>
      (rowsOf(call, code) ?? []).map(({ cause, remedy }): Row => [call, code, cause, remedy]),
    ),
  );
}

/** The errnos that each call can return, from docs/kernel.md and, for other calls, from the manual pages. */
const SAID: Readonly<Record<string, string>> = {
  userfaultfd: 'EINVAL EPERM ENOSYS EMFILE ENFILE ENOMEM',
  '/dev/userfaultfd': 'ENOENT EACCES EPERM EINVAL EMFILE ENFILE',
  UFFDIO_API: 'EFAULT EINVAL EPERM',
  UFFDIO_REGISTER: 'EINVAL EPERM EBUSY ENOMEM EFAULT',
  UFFDIO_UNREGISTER: 'EINVAL ENOMEM EFAULT',
  UFFDIO_WAKE: 'EINVAL EFAULT',
  UFFDIO_COPY: 'EAGAIN EFAULT EINVAL ESRCH ENOSPC ENOENT EEXIST ENOMEM',
  UFFDIO_ZEROPAGE: 'EAGAIN EFAULT EINVAL ESRCH ENOSPC ENOENT EEXIST ENOMEM',
  UFFDIO_CONTINUE: 'EAGAIN EFAULT EINVAL ESRCH ENOSPC ENOENT EEXIST ENOMEM',
  UFFDIO_POISON: 'EAGAIN EFAULT EINVAL ESRCH ENOSPC ENOENT EEXIST ENOMEM',
  UFFDIO_WRITEPROTECT: 'EAGAIN EFAULT EINVAL ENOENT ESRCH',
  UFFDIO_MOVE: 'EAGAIN EFAULT EINVAL ENOENT EEXIST EBUSY ESRCH ENOMEM',
  read: 'EAGAIN EINVAL EFAULT EMFILE ENFILE ESPIPE',
  poll: 'EINVAL EFAULT ENOMEM',
  pidfd_open: 'EINVAL ENOENT ESRCH EMFILE ENFILE ENOSYS ENODEV ENOMEM',
  eventfd: 'EINVAL EMFILE ENFILE ENODEV ENOMEM',
  mmap: 'EACCES EAGAIN EINVAL ENFILE ENODEV ENOMEM EPERM',
  madvise: 'EINVAL ENOMEM',
  mremap: 'EFAULT EINVAL ENOMEM',
  memfd_create: 'EINVAL EMFILE ENFILE ENODEV ENOMEM EPERM',
  PAGEMAP_SCAN: 'EFAULT EINVAL ENOTTY EPERM ESRCH',
  '/proc/PID/pagemap': 'ENOENT ESRCH EACCES EMFILE ENFILE',
};

const inOrder = (rows: Row[]): string[] => rows.map((row) => row.join(' | ')).sort();

test('the table has the rows of docs/errors.md, word for word', () => {
  assert.ok(rowsOfTable().length > 100, 'the table was found');
  assert.deepEqual(inOrder(rowsOfDocs()), inOrder(rowsOfTable()));
});

test('every errno that a call can give has a row of that call', () => {
  for (const [call, codes] of Object.entries(SAID)) {
    for (const code of codes.split(' ')) assert.ok(rowsOf(call, code), `${code} of ${call}`);
  }
});

test('no row of docs/errors.md is broken', () => {
  const rows = docs.split('\n').filter((line) => /^\|\s*`?E[A-Z]+/.test(line));
  assert.equal(rows.length, rowsOfDocs().length);
});

test('codes stand in order below each call, so that a person finds them', () => {
  for (const section of docs.split(/^## /m).slice(1)) {
    const codes = [...section.matchAll(/^\| (E[A-Z0-9]+) \|/gm)].map(([, code]) => code);
    assert.deepEqual(codes, [...codes].sort(), section.slice(0, section.indexOf('\n')));
  }
});

test('every errno of the table has a number', () => {
  for (const [call, code] of rowsOfTable()) assert.ok(Errno[code], `${code} of ${call}`);
});

test('among the rows for one errno the last applies always, and it alone', () => {
  for (const [call, code] of rowsOfTable()) {
    const rows = rowsOf(call, code) ?? [];
    const always = rows.map(({ when }) => when === undefined);
    assert.deepEqual(always, [...always.slice(1).fill(false), true], `${code} of ${call}`);
    // Without facts about the failure, only the row that always applies is chosen.
    assert.equal(reasonFor(call, code, {}), rows.at(-1), `${code} of ${call}`);
  }
});

test('each text is one sentence of its own: a cause, and a way out', () => {
  for (const [call, code, cause, remedy] of rowsOfTable()) {
    for (const text of [cause, remedy]) {
      assert.match(text, /^\S.*[^.;: ]$/, `${code} of ${call}`);
      assert.doesNotMatch(formatted(text, {}), /[{}|]|\s{2}/, `${code} of ${call}`);
    }
  }
});

test('every call that the sources name in an error has rows', () => {
  const sources = readdirSync(join(root, 'src'), { recursive: true, encoding: 'utf8' });
  const named = sources
    .filter((file) => file.endsWith('.ts'))
    .flatMap((file) => {
      const text = readFileSync(join(root, 'src', file), 'utf8');
      return [...text.matchAll(/new UffdError\([^'()]*(?:\([^'()]*\)[^'()]*)*'([^']+)'/g)].map(
        ([, call]) => call,
      );
    });
  assert.ok(named.length > 15, `only ${named.length} errors were found`);
  assert.deepEqual(
    named.filter((call) => !Object.hasOwn(REASONS, call as string)),
    [],
  );
});

test('a call without rows of its own has those of any call; a name of Object is no call', () => {
  assert.equal(reasonFor('release', 'EBADF', {}), rowsOf(ANY_CALL, 'EBADF')?.[0]);
  assert.equal(reasonFor('constructor', 'toString', {}), undefined);
  assert.equal(new UffdError(-123, 'UFFDIO_COPY').message, 'E123: UFFDIO_COPY failed');
});

test('the message: code, call, the range and what is left of it, cause, way out', () => {
  const part = { address: 0x7f002000n, length: 0x1000, transferred: 0x2000, source: 0x5000n };
  assert.match(
    new UffdError(-16, 'UFFDIO_MOVE', part).message,
    /^EBUSY: UFFDIO_MOVE at 0x7f000000, 12288 bytes failed with 4096 left: page 0x5000 of the source is shared after a fork.*; rewrite it/,
  );
  assert.match(
    new UffdError(-16, 'UFFDIO_REGISTER', { address: 0x7f000000n, length: 0x1000 }).message,
    /^EBUSY: UFFDIO_REGISTER at 0x7f000000, 4096 bytes failed: another userfaultfd has/,
  );
  assert.match(new UffdError(24, 'userfaultfd').message, /^EMFILE: userfaultfd failed: the process has no/);
  assert.match(new UffdError(-16, 'UFFDIO_MOVE').message, /page … of the source/, 'a fact that is not known');
});

test.run();
