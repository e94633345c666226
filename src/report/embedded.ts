// What the page carries in elements of its own, as base64: two modules of WebAssembly and a trace. The names are those
// that src/cli/report/html.ts gives.

/** A trace, and what its file was called. */
export interface Embedded {
  readonly name: string;
  readonly bytes: Uint8Array;
}

/** The bytes of a small element. */
export function bytesIn(id: string): Uint8Array<ArrayBuffer> {
  return decoded(document.getElementById(id)?.textContent ?? '');
}

/** The trace that the page came with. What it was made of is let go. */
export async function embeddedTrace(): Promise<Embedded | undefined> {
  const element = document.getElementById('trace');
  if (!element) return undefined;
  const name = element.dataset.name ?? '';
  const compressed = decoded(element.textContent ?? '');
  element.remove();
  const stream = new Blob([compressed]).stream().pipeThrough(new DecompressionStream('gzip'));
  return { name, bytes: new Uint8Array(await new Response(stream).arrayBuffer()) };
}

/** Browsers have had a function for it since 2025. */
function decoded(base64: string): Uint8Array<ArrayBuffer> {
  const native = (Uint8Array as { fromBase64?: (text: string) => Uint8Array<ArrayBuffer> }).fromBase64;
  if (native) return native.call(Uint8Array, base64);
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);
  return bytes;
}
