// Every constant, size and offset of assembly/abi.ts equals that of this machine's <linux/userfaultfd.h> and
// <linux/fs.h>, if these headers define it. The lists and numbers of src/ equal those of the core.
//
// UFFD_HEADER=FILE compares with that header instead, for example a newer one.

import { strict as assert } from 'node:assert';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import * as bindings from '../src/bindings/core.js';
import { Errno } from '../src/errors/errors.js';
import { FEATURES, MODES, modeBits, type Operation, operationBits } from '../src/kernel/features.js';
import { PAGE_STATES } from '../src/uffd/core.js';
import { skip, suite } from './support/harness.js';

const test = suite('abi');
const root = fileURLToPath(new URL('../../', import.meta.url));

/** Compiles these files of the core and returns their exported numbers by name. */
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
    // WebAssembly exports a u64 as a signed BigInt, and a u32 as a signed number.
    const number = value.value as number | bigint;
    constants.set(name, typeof number === 'bigint' ? BigInt.asUintN(64, number) : BigInt(number >>> 0));
  }
  return constants;
}

/** Structs that begin with a struct uffdio_range. The core lists the fields of that range directly. */
const WITH_RANGE = /^uffdio_(register|zeropage|writeprotect|continue|poison)$/;

/** Sizes and offsets of the core's structs, named after the header's: `sizeof_STRUCT`, `STRUCT__MEMBER`. */
function layouts(): Map<string, bigint> {
  const found = new Map<string, bigint>();
  for (const [struct, fields] of Object.entries(bindings)) {
    // Names of the kernel's structs begin with a lower-case letter.
    if (typeof fields !== 'object' || !('sizeof' in fields) || !/^[a-z]/.test(struct)) continue;
    const member = /^uffd_msg_(\w+)$/.exec(struct)?.[1];
    found.set(member ? `overlay_${struct}` : `sizeof_${struct}`, BigInt(fields.sizeof));
    for (const [field, offset] of Object.entries(fields)) {
      if (/^(sizeof|event|reserved\d|padding\d?|arg\d)$/.test(field)) continue;
      if (WITH_RANGE.test(struct) && field === 'len') continue;
      const own = WITH_RANGE.test(struct) && field === 'start' ? 'range' : field;
      const name = member
        ? `uffd_msg__arg_${member}_${own === 'ptid' ? 'feat_ptid' : own}`
        : `${struct}__${own}`;
      found.set(name, BigInt(offset));
    }
  }
  return found;
}

/** The macro that the header defines if it has this struct: the name of the request that takes the struct. */
function guardOf(struct: string): string {
  const request = struct.toUpperCase();
  if (['pm_scan_arg', 'page_region'].includes(struct)) return 'PAGEMAP_SCAN';
  return /^UFFDIO_(?!RANGE)/.test(request) ? request : 'UFFD_API';
}

/** A line of C that prints a name and its value if the header defines the name. */
function printer(name: string): string {
  const print = (value: string) => `printf("${name} %llu\\n", (unsigned long long)(${value}));`;
  const guarded = (guard: string, value: string) => `#ifdef ${guard}\n${print(value)}\n#endif`;
  if (name === 'SIZEOF_UFFD_MSG' || name.startsWith('overlay_')) return print('sizeof(struct uffd_msg)');
  if (name.startsWith('sizeof_')) {
    const struct = name.slice('sizeof_'.length);
    return guarded(guardOf(struct), `sizeof(struct ${struct})`);
  }
  const [struct, field] = name.split('__') as [string, string | undefined];
  // `arg_pagefault_flags` is `arg.pagefault.flags`: names of fields of userfaultfd structs contain no underscore.
  const member = struct === 'pm_scan_arg' ? field : field?.replaceAll('_', '.');
  if (member) return guarded(guardOf(struct), `offsetof(struct ${struct}, ${member})`);
  return guarded(name, name);
}

/** The header's values of these names. Names that the header does not define are left out. */
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
      // A header from the kernel's source tree uses this macro; `make headers_install` replaces it.
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
  const ours = new Map([...(await constantsOf('abi')), ...layouts()]);
  // The comparison below would also succeed on an empty list.
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
  // The kernel's names of operations to which this library gives another name.
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

test('the numbers of src/bindings/core.ts, and the lists of src/, are those of the core', async () => {
  const { Action, Message, Operation, Option, Plane, Scan, Step, Verdict } = bindings;
  // Left out: the trace codec, which is a module of its own, and the index, which only re-exports.
  const files = readdirSync(join(root, 'assembly'), { recursive: true, encoding: 'utf8' })
    .filter((file) => /^(?!index|trace).*\.ts$/.test(file))
    .map((file) => file.slice(0, -'.ts'.length));
  const core = await constantsOf(...files);
  /** Compares `{ name: number }` with the constants `PREFIXname`. No name may be missing on either side. */
  const compare = (prefix: string, ours: Record<string, number>) => {
    // PAGE_IS_* are the kernel's constants for PAGEMAP_SCAN, not page states.
    const theirs = [...core].filter(([name]) => name.startsWith(prefix) && !name.startsWith('PAGE_IS_'));
    const named = Object.entries(ours).map(([name, value]) => [prefix + name, BigInt(value)]);
    assert.deepEqual(Object.fromEntries(named), Object.fromEntries(theirs));
  };
  const enums = { Action, Message, Operation, Option, Plane, Scan, Step, Verdict };
  for (const [name, values] of Object.entries(enums)) compare(`${name}.`, values);
  const indexed = (names: readonly string[]) =>
    Object.fromEntries(names.map((name, index) => [name.toUpperCase().replaceAll('-', '_'), index]));
  compare('PAGE_', indexed(PAGE_STATES));
  compare('KIND_', indexed(MODES));
  const numbers = Object.entries(bindings).filter(([, value]) => /number|bigint/.test(typeof value));
  assert.ok(numbers.length > 70, `${numbers.length} numbers`);
  for (const name of ['ADAPTIVE', 'SIZEOF_UFFD_MSG', 'MESSAGES']) assert.ok(name in bindings, name);
  for (const [name, value] of numbers) assert.equal(core.get(name), BigInt(value as number | bigint), name);
});

test.run();
