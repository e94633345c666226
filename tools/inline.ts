// WebAssembly modules as ES modules that export their bytes, so that every bundler and browser can load them.

import { readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';

/**
 * On Node, its own Buffer decodes the text, because a loop in JavaScript would take each thread four milliseconds. The
 * global `Buffer` is not used: outside of Node it may be another object.
 */
const DECODE = `
const decode = (text) => {
  const node = globalThis.process?.getBuiltinModule?.('buffer');
  if (node) return new Uint8Array(node.Buffer.from(text, 'base64'));
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
};`;

export function inline(files: readonly string[], outdir: string): void {
  for (const file of files) {
    const text = readFileSync(file, 'base64');
    const code = `${DECODE}\nexport default /* @__PURE__ */ decode('${text}');\n`;
    writeFileSync(join(outdir, `${basename(file, '.wasm')}.js`), code);
  }
}
