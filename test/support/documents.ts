// The project's documents, for tests that read them.

import { readdirSync, readFileSync } from 'node:fs';
import { join, posix } from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = fileURLToPath(new URL('../../..', import.meta.url));

export interface Snippet {
  /** Its place: a document and line, or a source file and the name that it documents. */
  readonly where: string;
  readonly code: string;
  /** The file to save it as, if the paragraph before it names one. */
  readonly name?: string;
}

export function textOf(file: string): string {
  return readFileSync(join(root, file), 'utf8');
}

/** Pages for readers: those at the top, and those of docs/ and its folders, except the generated reference. */
export function documents(): string[] {
  const pages = (folder: string): string[] =>
    readdirSync(join(root, folder), { withFileTypes: true })
      .filter((entry) => entry.isFile() && entry.name.endsWith('.md'))
      .map(({ name }) => (folder ? `${folder}/${name}` : name));
  return ['', 'docs', 'docs/guides', 'docs/decisions'].flatMap(pages);
}

/** The code blocks of a document, in order. */
function allBlocks(file: string): { language: string; snippet: Snippet }[] {
  const text = textOf(file);
  return [...text.matchAll(/^```(\w*)\n([\s\S]*?)^```$/gm)].map(
    ({ index, 1: language = '', 2: code = '' }) => {
      const before = text.slice(0, index);
      const name = /`([\w-]+\.mjs)`/.exec(before.trimEnd().split('\n\n').at(-1) ?? '')?.[1];
      const where = `${file}:${before.split('\n').length}`;
      return { language, snippet: { where, code, ...(name !== undefined && { name }) } };
    },
  );
}

/** The code blocks of a document in one language. */
export function blocksOf(file: string, language = 'ts'): Snippet[] {
  return allBlocks(file).flatMap((block) => (block.language === language ? [block.snippet] : []));
}

/** The programs of a document and the lines that they print: blocks of ts followed by a block without language. */
export function programsOf(file: string): { program: Snippet; prints: string[] }[] {
  const blocks = allBlocks(file);
  return blocks.flatMap(({ language, snippet }, place) => {
    const next = blocks[place + 1];
    if (language !== 'ts' || next?.language !== '') return [];
    return [{ program: snippet, prints: next.snippet.code.trimEnd().split('\n') }];
  });
}

/** The anchors of a document's headings. */
export function anchorsOf(file: string): Set<string> {
  const prose = textOf(file).replace(/^```[\s\S]*?^```$/gm, '');
  const seen = new Map<string, number>();
  return new Set(
    [...prose.matchAll(/^#+ (.+)$/gm)].map(([, heading = '']) => {
      const name = heading
        .toLowerCase()
        .replace(/[^\p{L}\p{N}\s_-]/gu, '')
        .replaceAll(' ', '-');
      const times = seen.get(name) ?? 0;
      seen.set(name, times + 1);
      return times === 0 ? name : `${name}-${times}`;
    }),
  );
}

/** The links of a document to files of this repository: the file, from the root, and the heading. */
export function linksOf(file: string): { target: string; anchor: string | undefined }[] {
  const text = textOf(file);
  const links = text.matchAll(/\]\((?!https?:)([^)#\s]*)(?:#([^)]+))?\)/g);
  const pictures = text.matchAll(/\bsrc="(?!https?:)([^"]+)"/g);
  return [...links, ...pictures].map(([, path = '', anchor]) => ({
    target: path ? posix.normalize(posix.join(posix.dirname(file), path)) : file,
    anchor,
  }));
}
