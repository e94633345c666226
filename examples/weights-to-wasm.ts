// Copies the weights of a model into WebAssembly memory piece by piece. A WebAssembly memory cannot be made from other
// memory, so one copy is needed; but the file is never in memory as a whole: each layer is fetched before it is used,
// and given up afterwards. Usage: node weights-to-wasm.js [FILE] [BYTES OF A LAYER]
import { fileSource, Pager } from 'userfaultfd/pager';

const file = process.argv[2] ?? process.execPath;
const layerBytes = Number(process.argv[3] ?? 2 ** 20);
const memory = new WebAssembly.Memory({ initial: Math.ceil(layerBytes / 65_536) });
const layer = new Uint8Array(memory.buffer, 0, layerBytes);
const pager = await Pager.open({ source: fileSource(file), resident: 4 * layerBytes });

let layers = 0;
for (let offset = 0; offset + layerBytes <= pager.size; offset += layerBytes, layers++) {
  const following = { offset: Math.min(offset + layerBytes, pager.size - layerBytes), length: layerBytes };
  const ahead = pager.prefetch(following);
  layer.set(pager.view(offset, layerBytes));
  // Here the module would compute with the layer, while the next one is read.
  await ahead;
  await pager.evict({ offset, length: layerBytes });
}
const { fetchedBytes, residentBytes } = pager.stats;
console.log(`every layer was copied: ${layers === Math.floor(pager.size / layerBytes)}`);
console.log(`each was read once: ${fetchedBytes < 1.5 * pager.size}`);
console.log(`resident at the end: at most ${4 * layerBytes} bytes: ${residentBytes <= 4 * layerBytes}`);
await pager.close();
