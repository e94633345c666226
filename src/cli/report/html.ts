// The report as one HTML file: script, style, and their data as base64. Its Content-Security-Policy forbids loading and
// sending, and allows only this one script.

import { createHash } from 'node:crypto';
import { basename } from 'node:path';
import { createGzip } from 'node:zlib';
import type { assets } from './assets.js';

/** Makes the file, piece by piece. `trace`: the bytes of the trace, in pieces as well. */
export async function* reportHtml(
  file: string,
  trace: NodeJS.ReadableStream,
  { page, style, core, codec }: typeof assets,
): AsyncGenerator<string, void, void> {
  const script = escaped(page);
  const name = basename(file);
  const policy = [
    "default-src 'none'",
    `script-src '${hashOf(script)}' 'wasm-unsafe-eval'`,
    // The charts set styles of elements.
    "style-src 'unsafe-inline'",
    'img-src data: blob:',
    "base-uri 'none'",
    "form-action 'none'",
  ].join('; ');
  yield `<!doctype html>
<html lang="en" data-theme="auto">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="uffd report">
<link rel="icon" href="data:,">
<title>${text(name)}: page faults</title>
<style>${style}</style>
</head>
<body>
<noscript>The report needs JavaScript.</noscript>
<script type="application/wasm" id="core">${base64(core)}</script>
<script type="application/wasm" id="codec">${base64(codec)}</script>
<script type="application/gzip" id="trace" data-name="${text(name)}">`;
  yield* base64Pieces(trace.pipe(createGzip({ level: 9 })));
  yield `</script>
<script type="module">${script}</script>
</body>
</html>
`;
}

/** The script without text that would end its element. */
function escaped(script: string): string {
  return script.replaceAll(/<(?=\/script|!--)/gi, '\\x3C');
}

function hashOf(script: string): string {
  return `sha256-${createHash('sha256').update(script).digest('base64')}`;
}

function base64(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('base64');
}

/** Pieces of whole groups of three bytes, so that their encodings can be joined. */
async function* base64Pieces(stream: AsyncIterable<Buffer | string>): AsyncGenerator<string, void, void> {
  let left = Buffer.alloc(0);
  for await (const piece of stream) {
    const bytes = Buffer.concat([left, piece as Buffer]);
    const whole = bytes.length - (bytes.length % 3);
    left = bytes.subarray(whole);
    yield bytes.subarray(0, whole).toString('base64');
  }
  yield left.toString('base64');
}

function text(given: string): string {
  const signs: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' };
  return given.replaceAll(/[&<>"]/g, (sign) => signs[sign] ?? sign);
}
