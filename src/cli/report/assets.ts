// What a report is made of: the page's script and style as they were built, and the two modules of WebAssembly. A bundle
// of the command has all four inside, in place of this module.

import { readFileSync } from 'node:fs';
import codec from '#trace';
import core from '#wasm';

export interface ReportAssets {
  readonly page: string;
  readonly style: string;
  readonly core: Uint8Array;
  readonly codec: Uint8Array;
}

export function reportAssets(): ReportAssets {
  const built = (name: string): string =>
    readFileSync(new URL(`../../../report/${name}`, import.meta.url), 'utf8');
  return { page: built('page.js'), style: built('style.css'), core, codec };
}
