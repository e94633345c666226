// Edits a file that does not fit into memory, in place. The file is sparse, so that 10 GB take no room on the disk.
// Changes are written in the background, and by `flush`: a process that is killed loses only what came after it, and
// leaves no block half written (Pager.recover). Usage: node edit-large-file.js [BYTES]
import { closeSync, ftruncateSync, mkdtempSync, openSync, readSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileSource, Pager } from 'userfaultfd/pager';

const size = Number(process.argv[2] ?? 10e9);
const place = (line: number) => Math.floor((size / 100) * line);
const folder = mkdtempSync(join(tmpdir(), 'uffd-edit-'));
const path = join(folder, 'data');
const fd = openSync(path, 'w+');
ftruncateSync(fd, size);

const pager = await Pager.open({ source: fileSource(path), resident: 16 * 2 ** 20, writable: true });
for (let line = 0; line < 100; line++) Buffer.from(pager.view(place(line), 8).buffer).write(`line ${line}`);
await pager.flush();
const text = Buffer.alloc(7);
readSync(fd, text, 0, 7, place(42));
console.log(`${text} is in the file`);
await pager.close();

closeSync(fd);
rmSync(folder, { recursive: true });
