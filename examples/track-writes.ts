import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Mapping } from 'userfaultfd';
import { DirtyTracker } from 'userfaultfd/dirty';

const folder = mkdtempSync(join(tmpdir(), 'uffd-'));
const file = join(folder, 'checkpoints');
const memory = Mapping.anonymous(100 * 4096);
const tracker = await DirtyTracker.open(memory);
const text = Buffer.from(memory.bytes.buffer);

// The first checkpoint holds all pages, the next one those that were written since.
text.write('the first draft', 7 * 4096);
console.log(`checkpoint of ${(await tracker.checkpoint(file)).pages} pages`);

text.write('a second thought', 7 * 4096);
text.write('a footnote', 42 * 4096);
for (const { start } of tracker.collect())
  console.log(`written: page ${Number(start - memory.address) / 4096}`);
console.log(`checkpoint of ${(await tracker.checkpoint(file)).pages} pages`);

await tracker.restore(file, { checkpoint: 0 });
console.log(text.toString('latin1', 7 * 4096, 7 * 4096 + 15));

tracker.close();
rmSync(folder, { recursive: true });
