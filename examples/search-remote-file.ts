// Finds a byte pattern in a remote file of any size, with at most 16 MiB of it in memory. Only what is touched is
// fetched, and what was not used for long is given up. Usage: node search-remote-file.js URL TEXT
import { httpSource, Pager } from 'userfaultfd/pager';

const [url = '', text = ''] = process.argv.slice(2);
const pager = await Pager.open({ source: httpSource(url), resident: 16 * 2 ** 20 });
for (let offset = 0; offset < pager.size; offset += 2 ** 30) {
  const end = Math.min(offset + 2 ** 30 + text.length - 1, pager.size);
  const found = Buffer.from(pager.view(offset, end - offset).buffer).indexOf(text);
  if (found >= 0) console.log(`found at byte ${offset + found}`);
}
await pager.close();
