// What a report is made of: the page's script and style as they were built, and the two modules of WebAssembly.

import { page, style } from '#report';
import codec from '#trace';
import core from '#wasm';

export interface ReportAssets {
  readonly page: string;
  readonly style: string;
  readonly core: Uint8Array;
  readonly codec: Uint8Array;
}

export const assets: ReportAssets = { page, style, core, codec };
