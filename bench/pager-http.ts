// The HTTP server of the benchmark of pagers, a process of its own: serves the file that it is started with from its
// memory, whole or in ranges, and prints its port.

import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';

const CHUNK = 65_536;

const [, , path = ''] = process.argv;
const file = readFileSync(path);

const server = createServer((request, response) => {
  const range = /bytes=(\d+)-(\d+)/.exec(request.headers.range ?? '');
  const [first, last] = range ? [Number(range[1]), Number(range[2])] : [0, file.length - 1];
  const headers = { 'content-length': last + 1 - first, etag: '"bench"', 'accept-ranges': 'bytes' };
  if (range)
    response.writeHead(206, { ...headers, 'content-range': `bytes ${first}-${last}/${file.length}` });
  else response.writeHead(200, headers);
  if (request.method === 'HEAD') {
    response.end();
    return;
  }
  let at = first;
  const more = (): void => {
    while (at <= last) {
      const chunk = file.subarray(at, Math.min(at + CHUNK, last + 1));
      at += chunk.length;
      if (!response.write(chunk)) {
        response.once('drain', more);
        return;
      }
    }
    response.end();
  };
  more();
});
server.listen(0, '127.0.0.1', () => console.log((server.address() as AddressInfo).port));
process.once('disconnect', () => process.exit());
