// A store on a web server, as a process that a test kills: serves the files of a folder, each answer after some
// milliseconds. Prints a line when it listens.
//
//   store-program FOLDER PORT MOST_MS SEED

import { createReadStream, statSync } from 'node:fs';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { generator } from '../../support/harness.js';

const [, , folder = '', port = '', most = '', seed = ''] = process.argv;
const below = generator(Number(seed));

createServer((request, response) => {
  setTimeout(
    () => {
      const path = join(folder, request.url as string);
      const bytes = statSync(path, { throwIfNoEntry: false })?.size;
      response.writeHead(bytes === undefined ? 404 : 200, { 'content-length': bytes ?? 0 });
      if (bytes === undefined) response.end();
      else createReadStream(path).pipe(response);
    },
    below(Number(most)),
  );
}).listen(Number(port), '127.0.0.1', () => console.log('listens'));
