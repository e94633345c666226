// Writes the TypeScript bindings of the core, of the trace codec and of the pager, from their sources: every exported enum and
// constant of assembly/, the layouts of structs, accessors for the exchange, and the signatures of the exports. So no
// binding is written by hand.

import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import asc from 'assemblyscript/asc';

/** The name of the compiled module, which is not a file. It exports every declaration. */
const ENTRY = 'bindings.ts';
const FOLDER = 'assembly';
/** The initial memory is that of the codec in asconfig.json, because the codec has more static data than the core. */
const OPTIONS = ['--use', 'abort=', '--initialMemory', '5'];
/** The modules of their own: the codec of traces, and the pager. */
const TRACE = 'trace.ts';
const PAGER = 'pager/';

/** Typed arrays by the type of a field, and bytes of an element. */
const VIEWS = {
  words: { array: 'BigUint64Array', bytes: 8, types: ['u64'] },
  floats: { array: 'Float64Array', bytes: 8, types: ['f64'] },
  ints: { array: 'Uint32Array', bytes: 4, types: ['u32', 'i32'] },
} as const;
type View = keyof typeof VIEWS;

interface Declared {
  readonly file: string;
  readonly name: string;
}

interface Field {
  readonly name: string;
  readonly type: string;
  readonly comment: string;
}

interface Struct extends Declared {
  readonly fields: readonly Field[];
}

/** The core's declarations, as its sources have them. */
interface Declarations {
  readonly enums: readonly Declared[];
  readonly constants: readonly (Declared & { readonly type: string })[];
  readonly structs: readonly Struct[];
}

/** The compiled module. */
interface Compiled {
  readonly module: WebAssembly.Module;
  readonly globals: ReadonlyMap<string, number | bigint>;
  /** TypeScript's view of the exports, as asc writes it. */
  readonly declared: string;
}

/** @throws Error with asc's messages, if the core does not compile */
export async function writeBindings(target: string): Promise<void> {
  const files = sources().filter((file) => file !== TRACE && !file.startsWith(PAGER));
  await writeModule(target, 'index.ts', files);
}

/** @throws Error with asc's messages, if the pager's state machine does not compile */
export async function writePagerBindings(target: string): Promise<void> {
  const files = sources().filter((file) => file.startsWith(PAGER));
  await writeModule(target, `${PAGER}index.ts`, files);
}

/** @throws Error with asc's messages, if the codec does not compile */
export async function writeTraceBindings(target: string): Promise<void> {
  await writeModule(target, TRACE, [TRACE]);
}

function sources(): string[] {
  return readdirSync(FOLDER, { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.ts'))
    .sort();
}

/** Writes the bindings of one module: what `main` exports, and what `files` declare. */
async function writeModule(target: string, main: string, files: readonly string[]): Promise<void> {
  const declarations = declarationsOf(files);
  const compiled = await compile(entryOf(main, declarations));
  const { enums, constants, structs } = declarations;
  const { globals } = compiled;
  const exchange = structs.find(({ name }) => name === 'Exchange');
  const text = [
    '// Made by tools/bindings.ts from assembly/. Do not edit.\n',
    ...enums.map(({ name }) => enumText(name, globals)),
    ...constants.map(({ name, type }) => `export const ${name} = ${literal(globals.get(name), type)};`),
    '',
    ...structs.map((struct) => structText(struct, globals)),
    ...(exchange ? [exchangeText(exchange, globals)] : []),
    exportsText(compiled, declarations),
  ].join('\n');
  mkdirSync(dirname(target), { recursive: true });
  writeFileSync(target, text);
}

function declarationsOf(files: readonly string[]): Declarations {
  const enums: Declared[] = [];
  const constants: Declarations['constants'][number][] = [];
  const structs: Struct[] = [];
  for (const file of files) {
    const source = readFileSync(`${FOLDER}/${file}`, 'utf8');
    for (const [, name] of source.matchAll(/^export enum (\w+)/gm))
      enums.push({ file, name: name as string });
    for (const [, name, type] of source.matchAll(/^export const ([A-Z_]\w*): (\w+) =/gm))
      constants.push({ file, name: name as string, type: type as string });
    for (const [, name, body] of source.matchAll(/^@unmanaged\nexport class (\w+) \{\n([\s\S]*?)^\}/gm))
      structs.push({ file, name: name as string, fields: fieldsOf(body as string) });
  }
  return { enums, constants, structs };
}

function fieldsOf(body: string): Field[] {
  const found = body.matchAll(/^(?: {2}\/\*\* (.*) \*\/\n)? {2}(\w+): (\w+);/gm);
  return [...found].map(([, comment = '', name, type]) => ({
    comment,
    name: name as string,
    type: type as string,
  }));
}

function entryOf(main: string, { enums, constants, structs }: Declarations): string {
  const from = (file: string): string => `'./${FOLDER}/${file.replace(/\.ts$/, '')}'`;
  return [
    `export * from ${from(main)};`,
    ...[...enums, ...constants].map(({ file, name }) => `export { ${name} } from ${from(file)};`),
    ...structs.flatMap(({ file, name, fields }) => [
      `import { ${name} } from ${from(file)};`,
      `export const ${name}__: usize = offsetof<${name}>();`,
      ...fields.map(
        (field) => `export const ${name}__${field.name}: usize = offsetof<${name}>('${field.name}');`,
      ),
    ]),
  ].join('\n');
}

async function compile(entry: string): Promise<Compiled> {
  const made = new Map<string, string | Uint8Array>();
  const { error, stderr } = await asc.main(
    [ENTRY, '--outFile', 'core.wasm', '--bindings', 'raw', '--runtime', 'stub', ...OPTIONS],
    {
      readFile: (name) => (name === ENTRY ? entry : textOf(name)),
      writeFile: (name, content) => void made.set(name, content),
      listFiles: () => [],
    },
  );
  if (error) throw new Error(`${error.message}\n${stderr.toString()}`);
  const module = new WebAssembly.Module(made.get('core.wasm') as Uint8Array<ArrayBuffer>);
  const globals = Object.entries(new WebAssembly.Instance(module).exports).flatMap(([name, value]) =>
    value instanceof WebAssembly.Global ? [[name, value.value as number | bigint] as const] : [],
  );
  return { module, globals: new Map(globals), declared: String(made.get('core.d.ts')) };
}

/** A file's text; null if there is no such file. (asc looks for a module in several folders.) */
function textOf(name: string): string | null {
  try {
    return readFileSync(name, 'utf8');
  } catch {
    return null;
  }
}

/** The literal of a constant: unsigned, unless its type is signed. */
function literal(value: number | bigint | undefined, type: string): string {
  if (value === undefined) throw new Error('the core does not export a constant that it declares');
  if (typeof value === 'bigint') return `${BigInt.asUintN(64, value)}n`;
  return String(type.startsWith('u') ? value >>> 0 : value);
}

function enumText(name: string, globals: Compiled['globals']): string {
  const members = [...globals].filter(([key]) => key.startsWith(`${name}.`));
  return [
    `export const ${name} = {`,
    ...members.map(([key, value]) => `  ${key.slice(name.length + 1)}: ${value},`),
    '} as const;',
    `export type ${name} = (typeof ${name})[keyof typeof ${name}];\n`,
  ].join('\n');
}

function structText({ name, fields }: Struct, globals: Compiled['globals']): string {
  return [
    '/** Offsets in bytes, and the size. */',
    `export const ${name} = {`,
    `  sizeof: ${globals.get(`${name}__`)},`,
    ...fields.map((field) => `  ${field.name}: ${globals.get(`${name}__${field.name}`)},`),
    '} as const;\n',
  ].join('\n');
}

/** The exchange's accessors: views of memory, which are taken again after it grew. */
function exchangeText({ fields }: Struct, globals: Compiled['globals']): string {
  const views = Object.keys(VIEWS) as View[];
  return [
    '/** The exchange of assembly/exchange.ts. */',
    'export class ExchangeView {',
    '  readonly #memory: { readonly buffer: ArrayBuffer };',
    ...views.flatMap((view) => [
      `  readonly #${view}At: number;`,
      `  #${view}View = new ${VIEWS[view].array}(0);`,
    ]),
    '  constructor(memory: { readonly buffer: ArrayBuffer }, at: number) {',
    '    this.#memory = memory;',
    ...views.map((view) => `    this.#${view}At = at / ${VIEWS[view].bytes};`),
    '  }',
    ...views.flatMap((view) => [
      `  #${view}(): ${VIEWS[view].array} {`,
      `    if (this.#${view}View.length === 0) this.#${view}View = new ${VIEWS[view].array}(this.#memory.buffer);`,
      `    return this.#${view}View;`,
      '  }',
    ]),
    ...fields.flatMap((field) => accessorsOf(field, globals.get(`Exchange__${field.name}`) as number)),
    '}\n',
  ].join('\n');
}

function accessorsOf({ name, type, comment }: Field, offset: number): string[] {
  const view = (Object.keys(VIEWS) as View[]).find((one) =>
    (VIEWS[one].types as readonly string[]).includes(type),
  ) as View;
  const result = type === 'u64' ? 'bigint' : 'number';
  const place = `this.#${view}()[this.#${view}At + ${offset / VIEWS[view].bytes}]`;
  const value = type === 'i32' ? `(${place} as number) | 0` : `${place} as ${result}`;
  return [
    ...(comment ? [`  /** ${comment} */`] : []),
    `  get ${name}(): ${result} {`,
    `    return ${value};`,
    '  }',
    ...(name.startsWith('argument')
      ? [`  set ${name}(value: ${result}) {`, `    ${place} = value;`, '  }']
      : []),
  ];
}

/** The signatures of the exports. */
function exportsText({ module, globals, declared }: Compiled, { constants }: Declarations): string {
  const own = new Set(WebAssembly.Module.exports(module).map(({ name }) => name));
  const places = [...globals.keys()].filter(
    (name) => !/\.|__/.test(name) && !constants.some((constant) => constant.name === name),
  );
  const functions = [...declared.matchAll(/^ {2}export function (\w+)\((.*)\): (.+);$/gm)].filter(
    ([, name]) => own.has(name as string),
  );
  return [
    '/** What the module exports. Booleans are answered as 0 or 1; places are offsets in memory, which never change. */',
    'export interface Exports extends Record<string, unknown> {',
    '  readonly memory: { readonly buffer: ArrayBuffer };',
    ...places.map((name) => `  readonly ${name}: { readonly value: number };`),
    ...functions.map(
      ([, name, parameters, result]) =>
        `  ${name}(${parameters}): ${result === 'boolean' ? 'number' : result};`,
    ),
    '}\n',
  ].join('\n');
}
