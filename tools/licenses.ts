// The licences of the packages in a bundle.

import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Metafile } from 'esbuild';

/** The packages of a bundle, by their folders below node_modules. */
export function packagesOf({ outputs }: Metafile): string[] {
  const inputs = Object.values(outputs).flatMap((output) =>
    Object.entries(output.inputs).filter(([, { bytesInOutput }]) => bytesInOutput > 0),
  );
  const folders = inputs.flatMap(([file]) => /.*node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(file)?.[0] ?? []);
  return [...new Set(folders)].sort();
}

/** What a package contains of others without their licence: the parser in undici. */
const WITHIN: Readonly<Record<string, string>> = {
  undici: `llhttp (MIT), in undici\n\n${readFileSync('tools/llhttp-license.txt', 'utf8').trim()}`,
};

/** The licences of these packages, one after the other. */
export function licenses(packages: readonly string[]): string {
  const folders = packages.map((name) =>
    name.startsWith('node_modules') ? name : join('node_modules', name),
  );
  const texts = [...new Set(folders)].sort().flatMap((folder) => {
    const { name, version, license } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'));
    const files = readdirSync(folder).filter((file) => /^(licen[cs]e|notice)/i.test(file));
    const text = files.map((file) => readFileSync(join(folder, file), 'utf8').trim()).join('\n\n');
    return [`${name} ${version} (${license})\n\n${text}`.trim(), WITHIN[name] ?? []].flat();
  });
  return `${['What others have written and is a part of these files.', ...texts].join(`\n\n${'-'.repeat(80)}\n\n`)}\n`;
}
