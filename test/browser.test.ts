// The portable entries run in a web page: each bundles to one file without Node's modules or koffi, and uses web
// globals only. A seed gives the same trace there as in Node, byte by byte.

import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { createContext, runInContext } from 'node:vm';
import { build } from 'esbuild';
import * as assert from 'uvu/assert';
import * as program from './browser/program.js';
import { suite } from './support/harness.js';

const test = suite('browser');
const here = dirname(fileURLToPath(import.meta.url));
const root = join(here, '../..');
const SEED = 7;

/** Paths of the entries that promise to run anywhere. */
const ENTRIES: Record<string, string> = Object.fromEntries(
  ['core', 'sim', 'testing', 'trace'].map((name) => {
    const { exports } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
    return [name, join(root, exports[`./${name}`].default)];
  }),
);

/** Bundles one file for a browser, with the core under test: the debug build or the release build. */
async function bundle(file: string, format: 'esm' | 'iife'): Promise<{ text: string; imports: string[] }> {
  const debug = process.execArgv.includes('--conditions=uffd-debug');
  const { outputFiles, metafile } = await build({
    entryPoints: [file],
    bundle: true,
    write: false,
    metafile: true,
    platform: 'browser',
    format,
    globalName: 'page',
    conditions: debug ? ['uffd-debug'] : [],
    // Comments may mention Node's modules, so the search for such names must not see comments.
    minifyWhitespace: true,
    logLevel: 'silent',
  });
  const imports = Object.values(metafile.outputs).flatMap((output) => output.imports.map(({ path }) => path));
  return { text: outputFiles[0]?.text ?? '', imports };
}

for (const [name, file] of Object.entries(ENTRIES)) {
  test(`userfaultfd/${name} is one file that imports nothing`, async () => {
    const { text, imports } = await bundle(file, 'esm');
    assert.equal(imports, []);
    assert.ok(text.length > 10_000);
    assert.not.match(text, /\bnode:|\brequire\(|koffi/);
  });
}

/** The globals of a web page that are not part of JavaScript itself. */
function webGlobals(): { globals: Record<string, unknown>; ports: MessagePort[]; warnings: string[] } {
  const ports: MessagePort[] = [];
  const warnings: string[] = [];
  class Channel extends MessageChannel {
    constructor() {
      super();
      ports.push(this.port1);
    }
  }
  const { TextEncoder, TextDecoder, performance, atob, btoa, crypto, queueMicrotask } = globalThis;
  const timers = {
    setTimeout: (due: () => void, ms?: number) => Number(setTimeout(due, ms)),
    clearTimeout: (timer: number) => clearTimeout(timer),
  };
  const globals = {
    ...{ TextEncoder, TextDecoder, performance, atob, btoa, crypto, queueMicrotask, ...timers },
    MessageChannel: Channel,
    console: { warn: (text: string) => warnings.push(text) },
  };
  return { globals, ports, warnings };
}

for (const [page, isolated] of [
  ['a page that is isolated', true],
  ['a page without shared memory', false],
] as const) {
  test(`${page}: a seed's trace is Node's, and its replay identical`, async () => {
    const { globals, ports, warnings } = webGlobals();
    const context = createContext(globals);
    if (!isolated) runInContext('delete globalThis.SharedArrayBuffer', context);
    assert.is(
      runInContext('typeof process + typeof Buffer + typeof require', context),
      'undefined'.repeat(3),
    );
    const { text } = await bundle(join(here, 'browser/program.js'), 'iife');
    const there: typeof program = runInContext(`${text}; page`, context);
    try {
      const [came, expected] = [await there.visit(SEED), await program.visit(SEED)];
      assert.ok(came.identical && came.faults > 0, `${came.faults} faults`);
      assert.is(sha256(came.trace), sha256(expected.trace));
      assert.equal([came.records, came.faults], [expected.records, expected.faults]);
      assert.equal([...came.reads], [1, 2, 3, 4, 5]);
      assert.equal([...there.refusals()], Array(3).fill('ERR_UFFD_UNSUPPORTED'));
      assert.equal(warnings, []);
    } finally {
      for (const port of ports) port.close();
    }
  });
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

test.run();
