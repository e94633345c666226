// The kernel's shapes are the C headers': every constant, size and offset of assembly/abi.ts that this machine's
// <linux/userfaultfd.h> and <linux/fs.h> have is equal to it, and the lists and numbers of src/ are equal to those
// of the core.
//
// UFFD_HEADER=FILE compares with another header, for one that is newer than the system's.

import { strict as assert } from 'node:assert';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import {
  ADAPTIVE,
  MESSAGE_BYTES,
  MODES,
  Next,
  Op,
  Option,
  PAGE_STATES,
  Plane,
  Read,
  Scan,
  Step,
} from '../src/core.js';
import { Errno } from '../src/errors.js';
import { FEATURES, modeBits, type Operation, operationBits } from '../src/features.js';
import { skip, suite } from './harness.js';

const test = suite('abi');
const root = fileURLToPath(new URL('../../', import.meta.url));

/** The exported numbers of some files of the core, by name. */
async function constantsOf(...files: string[]): Promise<Map<string, bigint>> {
  const { default: asc } = await import('assemblyscript/asc');
  let binary: Uint8Array | undefined;
  const entries = files.map((file) => `assembly/${file}.ts`);
  const options = [
    '--config',
    'none',
    '--baseDir',
    root,
    '--runtime',
    'stub',
    '--use',
    'abort=',
    '--outFile',
    'out.wasm',
  ];
  const { error, stderr } = await asc.main([...entries, ...options], {
    writeFile: (_name, contents) => {
      binary = contents as Uint8Array;
    },
  });
  assert.ok(!error && binary, `${stderr}`);
  const module = new WebAssembly.Module(new Uint8Array(binary));
  const constants = new Map<string, bigint>();
  for (const [name, value] of Object.entries(new WebAssembly.Instance(module).exports)) {
    if (!(value instanceof WebAssembly.Global)) continue;
    // u64 come as signed BigInt, u32 as signed numbers.
    const number = value.value as number | bigint;
    constants.set(name, typeof number === 'bigint' ? BigInt.asUintN(64, number) : BigInt(number >>> 0));
  }
  return constants;
}

/** A struct of the header exists where the request that takes it does. */
function guardOf(struct: string): string {
  const request = struct.toUpperCase();
  if (['pm_scan_arg', 'page_region'].includes(struct)) return 'PAGEMAP_SCAN';
  return /^UFFDIO_(?!RANGE)/.test(request) ? request : 'UFFD_API';
}

/** A line of C that prints one name and its value, if the header has it. */
function printer(name: string): string {
  const print = (value: string) => `printf("${name} %llu\\n", (unsigned long long)(${value}));`;
  const guarded = (guard: string, value: string) => `#ifdef ${guard}\n${print(value)}\n#endif`;
  if (name === 'SIZEOF_UFFD_MSG' || name.startsWith('overlay_')) return print('sizeof(struct uffd_msg)');
  if (name.startsWith('sizeof_')) {
    const struct = name.slice('sizeof_'.length);
    return guarded(guardOf(struct), `sizeof(struct ${struct})`);
  }
  const [struct, field] = name.split('__') as [string, string | undefined];
  // `arg_pagefault_flags` is `arg.pagefault.flags`: no field of a userfaultfd struct has an underscore.
  const member = struct === 'pm_scan_arg' ? field : field?.replaceAll('_', '.');
  if (member) return guarded(guardOf(struct), `offsetof(struct ${struct}, ${member})`);
  return guarded(name, name);
}

/** What the header says of these names; those it lacks are left out. */
function headerSays(names: Iterable<string>): Map<string, bigint> {
  const folder = mkdtempSync(join(tmpdir(), 'uffd-abi-'));
  try {
    const source = join(folder, 'print.c');
    const program = join(folder, 'print');
    const lines = [
      '#define _GNU_SOURCE',
      '#include <errno.h>',
      '#include <fcntl.h>',
      '#include <poll.h>',
      '#include <stddef.h>',
      '#include <stdio.h>',
      '#include <sys/ioctl.h>',
      '#include <linux/fs.h>',
      '#include <linux/types.h>',
      // The kernel's own sources say it without the underscores.
      '#define __packed __attribute__((packed))',
      `#include ${process.env.UFFD_HEADER ? `"${process.env.UFFD_HEADER}"` : '<linux/userfaultfd.h>'}`,
      'int main(void) {',
      ...[...names].map(printer),
      'return 0; }',
    ];
    writeFileSync(source, `${lines.join('\n')}\n`);
    try {
      execFileSync('cc', ['-o', program, source], { stdio: 'pipe' });
    } catch (error) {
      const { code, stderr } = error as { code?: string; stderr?: Buffer };
      if (code === 'ENOENT') skip('there is no C compiler (cc) here');
      if (/userfaultfd\.h: No such file/.test(`${stderr}`)) skip('there is no <linux/userfaultfd.h> here');
      throw new Error(`the printer does not compile:\n${stderr}`);
    }
    const said = execFileSync(program, { encoding: 'utf8' }).trim().split('\n');
    return new Map(
      said.map((line) => line.split(' ') as [string, string]).map(([name, value]) => [name, BigInt(value)]),
    );
  } finally {
    rmSync(folder, { recursive: true });
  }
}

test('every name that the C header has is equal to it', async () => {
  if (!['x64', 'arm64'].includes(process.arch))
    skip(`the numbers are those of x86-64 and arm64, not ${process.arch}`);
  const ours = await constantsOf('abi', 'layout');
  // What must be among them, so that the comparison is not of nothing.
  for (const name of ['UFFDIO_MOVE', 'UFFD_FEATURE_WP_ASYNC', 'sizeof_uffdio_poison', 'uffdio_copy__copy']) {
    assert.ok(ours.has(name), `assembly/ does not export ${name}`);
  }
  const theirs = headerSays(ours.keys());
  const different = [...theirs].filter(([name, value]) => ours.get(name) !== value);
  assert.deepEqual(
    different.map(([name, value]) => `${name}: ${ours.get(name)}, not ${value}`),
    [],
  );
  const unknown = [...ours.keys()].filter((name) => !theirs.has(name));
  console.log(
    `${theirs.size} of ${ours.size} names compared; this header does not know: ${unknown.join(', ') || '-'}`,
  );
  assert.ok(theirs.size >= 80, 'the header knows too few of them');
});

test('errno values are those of this system', () => {
  const theirs = headerSays(Object.keys(Errno));
  const different = Object.entries(Errno).filter(([name, value]) => theirs.get(name) !== BigInt(value));
  assert.deepEqual(different, []);
});

test('features, operations and modes have the bits of the core', async () => {
  const abi = await constantsOf('abi');
  const constantOf = (prefix: string, name: string) =>
    abi.get(prefix + name.toUpperCase().replaceAll('-', '_'));
  const known = [...abi.keys()].filter((name) => name.startsWith('UFFD_FEATURE_'));
  assert.equal(known.length, FEATURES.length);
  FEATURES.forEach((name, bit) => {
    assert.equal(constantOf('UFFD_FEATURE_', name), 1n << BigInt(bit), name);
  });
  // The kernel's names, where ours are others.
  const other: Record<string, Operation> = { zeropage: 'zero', writeprotect: 'write-protect' };
  const operations = [...abi.keys()].filter((name) => name.startsWith('_UFFDIO_'));
  assert.equal(operations.length, 10);
  for (const constant of operations) {
    const name = constant.slice('_UFFDIO_'.length).toLowerCase();
    assert.equal(
      operationBits([other[name] ?? (name as Operation)]),
      1n << (abi.get(constant) as bigint),
      name,
    );
  }
  const modes = { missing: 'MISSING', 'write-protect': 'WP', minor: 'MINOR' } as const;
  assert.deepEqual(Object.keys(modes), [...MODES]);
  for (const mode of MODES) {
    assert.equal(BigInt(modeBits(mode)), abi.get(`UFFDIO_REGISTER_MODE_${modes[mode]}`), mode);
  }
});

test('the numbers that src/core.ts repeats are those of the core', async () => {
  const core = await constantsOf(
    'abi',
    'inbox',
    'round',
    'transfer',
    'pages',
    'faults',
    'pagemap',
    'streams',
  );
  /** `{ camelCase: number }` against `PREFIX_SNAKE_CASE`, both ways. */
  const compare = (prefix: string, ours: Record<string, number>, other: Record<string, string> = {}) => {
    // PAGE_IS_* are the kernel's own.
    const theirs = [...core].filter(([name]) => name.startsWith(prefix) && !name.startsWith('PAGE_IS_'));
    const snake = (name: string) => other[name] ?? name.replace(/[A-Z]/g, '_$&').toUpperCase();
    const named = Object.entries(ours).map(([name, value]) => [prefix + snake(name), BigInt(value)]);
    assert.deepEqual(Object.fromEntries(named), Object.fromEntries(theirs));
  };
  compare('READ_', Read);
  compare('NEXT_', Next);
  compare('STEP_', Step);
  compare('PLANE_', Plane);
  compare('SCAN_', Scan);
  compare('OP_', Op, { zero: 'ZEROPAGE', writeProtect: 'WRITEPROTECT' });
  compare('OPTION_', Option, { dontWake: 'DONTWAKE', writeProtect: 'WP', allowHoles: 'HOLES' });
  const indexed = (names: readonly string[]) =>
    Object.fromEntries(
      names.map((name, index) => [name.replace(/-./g, (text) => text.slice(1).toUpperCase()), index]),
    );
  compare('PAGE_', indexed(PAGE_STATES));
  compare('KIND_', indexed(MODES));
  assert.equal(core.get('SIZEOF_UFFD_MSG'), BigInt(MESSAGE_BYTES));
  assert.equal(core.get('ADAPTIVE'), BigInt(ADAPTIVE));
});

test.run();
