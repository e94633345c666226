// The monitor chooses which events its userfaultfd posts. The server warns once if remove events are missing, since a
// removed page then gets the file's bytes instead of zeros.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import { type Feature, Mapping, Userfaultfd } from '../../src/index.js';
import { handOver, serve } from '../../src/serve/index.js';
import { suite } from '../support/harness.js';
import { needKernel, P, until } from '../support/real-kernel.js';

const test = suite('serve/features');

for (const [features, warns] of [
  [['event-remove'], false],
  [['event-remove', 'event-remap', 'event-unmap'], false],
  [[], true],
] as const satisfies [readonly Feature[], boolean][]) {
  test(`a guest whose userfaultfd has ${features.join(', ') || 'no feature'} is ${warns ? '' : 'not '}warned of`, async () => {
    needKernel();
    const folder = mkdtempSync(join(tmpdir(), 'uffd-features-'));
    const [socket, memory] = [join(folder, 'socket'), join(folder, 'memory')];
    writeFileSync(memory, new Uint8Array(4 * P).fill(7));
    const server = await serve({ vms: [{ socket, memory }], onError: 'leave' });
    const warnings: string[] = [];
    server.on('warned', (reason) => void warnings.push(reason));
    const guest = Mapping.anonymous(4 * P);
    const uffd = Userfaultfd.open({ features });
    try {
      uffd.register(guest.address, guest.length);
      const regions = [{ start: guest.address, length: guest.length, offset: 0, pageSize: P }];
      const connection = handOver(socket, regions, uffd.fd);
      await until(() => [...server.sessions].some(({ settledMs }) => settledMs !== undefined));
      assert.is(
        warnings.some((reason) => reason.includes('does not tell removals')),
        warns,
        warnings.join('\n'),
      );
      connection.close();
    } finally {
      uffd.close();
      await server.close();
      rmSync(folder, { recursive: true });
    }
  });
}

test.run();
