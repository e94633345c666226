// The parts of a report: the HTML page's script and style as they were built, and the two modules of WebAssembly.

import { page, style } from '#report';
import codec from '#trace';
import core from '#wasm';

export const assets = { page, style, core, codec };
