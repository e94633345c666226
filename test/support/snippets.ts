// The code in documents and docstrings: this file finds it, type-checks it against the package's published types, and
// runs it in a folder where the package is installed.

import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { transformSync } from 'esbuild';
import ts from 'typescript';
import { root, type Snippet, textOf } from './documents.js';

/** The examples in the docstrings of src/, each with the name that it documents. */
export function examples(): Snippet[] {
  const files = readdirSync(join(root, 'src'), { recursive: true, encoding: 'utf8' });
  return files
    .filter((file) => file.endsWith('.ts'))
    .sort()
    .flatMap((file) => {
      const found = textOf(join('src', file)).matchAll(
        /\/\*\*((?:(?!\*\/)[\s\S])*?@example(?:(?!\*\/)[\s\S])*)\*\/\s*(?:(?:export|static|async|function|class) )*(\w+)/g,
      );
      return [...found].map(([, comment = '', name = '']) => {
        const lines = comment.replace(/^ *\* ?/gm, '');
        const code = /@example\n```ts\n([\s\S]*?)^```$/m.exec(lines)?.[1];
        if (code === undefined) throw new Error(`src/${file}: the example of ${name} is no block of ts`);
        return { where: `src/${file}: ${name}`, code };
      });
    });
}

/** What TypeScript says of a parameter without a type, which every parameter of plain JavaScript is. */
const IMPLICIT_ANY = 7006;

/**
 * The compiler's errors. Each snippet is a module of its own beside package.json, so that it imports the package by its
 * name. `prelude` declares names that the snippets may use.
 */
export function complaints(snippets: readonly Snippet[], prelude = ''): string[] {
  const { config } = ts.readConfigFile(join(root, 'tsconfig.json'), ts.sys.readFile);
  const { options } = ts.parseJsonConfigFileContent({ ...config, files: [], include: [] }, ts.sys, root);
  // tsconfig.json maps the package's name to its sources; here the name must find the published package.
  for (const name of ['outDir', 'rootDir', 'declaration', 'paths']) delete options[name];
  const files = new Map(
    snippets.map(({ code }, index) => [join(root, `snippet-${index}.ts`), `${code}\nexport {};\n`]),
  );
  files.set(join(root, 'snippet-prelude.ts'), `${prelude}\nexport {};\n`);
  const host = ts.createCompilerHost(options);
  const { fileExists, readFile, getSourceFile } = host;
  host.fileExists = (name) => files.has(name) || fileExists(name);
  host.readFile = (name) => files.get(name) ?? readFile(name);
  host.getSourceFile = (name, language, ...rest) => {
    const own = files.get(name);
    if (own === undefined) return getSourceFile(name, language, ...rest);
    return ts.createSourceFile(name, own, language);
  };
  const program = ts.createProgram([...files.keys()], options, host);
  return ts.getPreEmitDiagnostics(program).flatMap(({ file, start = 0, code, messageText }) => {
    const index = [...files.keys()].indexOf(file?.fileName ?? '');
    if (code === IMPLICIT_ANY && snippets[index]?.name !== undefined) return [];
    const where = snippets[index]?.where ?? file?.fileName ?? '';
    const line = file ? file.text.slice(0, start).split('\n').length : 0;
    return [`${where}, line ${line}: ${ts.flattenDiagnosticMessageText(messageText, ' ')}`];
  });
}

/** Passes a temporary folder in which only the package is installed. */
export async function withPackage<T>(body: (folder: string) => T | Promise<T>): Promise<T> {
  const folder = mkdtempSync(join(tmpdir(), 'uffd-snippet-'));
  try {
    mkdirSync(join(folder, 'node_modules'));
    symlinkSync(root, join(folder, 'node_modules/userfaultfd'));
    return await body(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/**
 * Writes a snippet into a folder, and returns the file's name. A snippet with a name is written as it is, because a
 * reader saves it as it is; any other is compiled for Node 20.
 */
export function writeModule(folder: string, { code, name }: Snippet): string {
  const file = name ?? 'snippet.mjs';
  const text = name === undefined ? transformSync(code, { loader: 'ts', target: 'node20' }).code : code;
  writeFileSync(join(folder, file), text);
  return file;
}

/** Whether code is plain JavaScript that Node 20 can parse. */
export function isPlain(code: string): boolean {
  try {
    const [newest, node20] = ['esnext', 'node20'].map(
      (target) => transformSync(code, { loader: 'js', target }).code,
    );
    // esbuild rewrites what Node 20 cannot parse.
    return newest === node20;
  } catch {
    return false; // types
  }
}

/** Runs a snippet and returns the lines that it prints; throws if it fails or does not end. */
export function linesOf(folder: string, snippet: Snippet): string[] {
  const conditions = process.execArgv.filter((argument) => argument.startsWith('--conditions'));
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [...conditions, writeModule(folder, snippet)],
    { cwd: folder, encoding: 'utf8', timeout: 30_000 },
  );
  if (status !== 0) throw new Error(`${snippet.where}: ${status}: ${stdout}${stderr}`);
  return stdout.trimEnd().split('\n');
}
