// The data in elements of the page, as base64: two modules of WebAssembly and a trace. Their names are those in
// src/cli/report/html.ts.

/** The bytes of a small element. */
export function bytesIn(id: string): Uint8Array<ArrayBuffer> {
  return decoded(document.getElementById(id)?.textContent ?? '');
}

/** The trace in the page, and the name of its file. Its text is released. */
export async function embeddedTrace(): Promise<{ name: string; bytes: Uint8Array } | undefined> {
  const element = document.getElementById('trace');
  if (!element) return undefined;
  const name = element.dataset.name ?? '';
  const compressed = decoded(element.textContent ?? '');
  element.remove();
  const stream = new Blob([compressed]).stream().pipeThrough(new DecompressionStream('gzip'));
  return { name, bytes: new Uint8Array(await new Response(stream).arrayBuffer()) };
}

/** Browsers have had a function for this since 2025. */
function decoded(base64: string): Uint8Array<ArrayBuffer> {
  const native = (Uint8Array as { fromBase64?: (text: string) => Uint8Array<ArrayBuffer> }).fromBase64;
  if (native) return native.call(Uint8Array, base64);
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);
  return bytes;
}
