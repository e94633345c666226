// The project's documents, for tests that read them.

import { readdirSync, readFileSync } from 'node:fs';
import { join, posix } from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = fileURLToPath(new URL('../..', import.meta.url));

export interface Snippet {
  /** Where it stands: a document and its line, or a source and what is documented. */
  readonly where: string;
  readonly code: string;
}

export function textOf(file: string): string {
  return readFileSync(join(root, file), 'utf8');
}

/** Pages for readers: those at the top, and those of docs/. */
export function documents(): string[] {
  const pages = (folder: string): string[] =>
    readdirSync(join(root, folder), { withFileTypes: true })
      .filter((entry) => entry.isFile() && entry.name.endsWith('.md'))
      .map(({ name }) => (folder ? `${folder}/${name}` : name));
  return [...pages(''), ...pages('docs')];
}

/** The blocks of a document that are in a language. */
export function blocksOf(file: string, language = 'ts'): Snippet[] {
  const text = textOf(file);
  return [...text.matchAll(new RegExp(`^\`\`\`${language}\n([\\s\\S]*?)^\`\`\`$`, 'gm'))].map((found) => ({
    where: `${file}:${text.slice(0, found.index).split('\n').length}`,
    code: found[1] as string,
  }));
}

/** Where a link to a document's heading leads, for each of its headings. */
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
  const links = textOf(file).matchAll(/\]\((?!https?:)([^)#\s]*)(?:#([^)]+))?\)/g);
  return [...links].map(([, path = '', anchor]) => ({
    target: path ? posix.normalize(posix.join(posix.dirname(file), path)) : file,
    anchor,
  }));
}
