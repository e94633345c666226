// A virtual machine goes on out of a memory file that `uffd serve` serves: its page faults come from the hypervisor,
// the first of them for its code.

import { closeSync, openSync, writeSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import * as assert from 'uvu/assert';
import { CODE, CODE_AT, whyNoKvm } from '../guest/kvm.js';
import { leaveOut, seed, suite } from '../harness.js';
import { needKernelFaults } from '../kernel/support.js';
import { P, served, writeMemory } from './process.js';

const MONITOR = fileURLToPath(new URL('../guest/kvm-monitor.js', import.meta.url));
const PAGES = 1024;

const test = suite('serve/kvm');
const start = seed();
const missing = whyNoKvm();

/** What kvm-monitor.ts prints at its end. */
interface Told {
  pages: number;
  cpus: number;
  removed: number;
  absent: number;
  wrong: number;
  wrongSums: number;
}

/** A memory file that holds the guest's code. */
function image(path: string): void {
  writeMemory(path, PAGES, start, (page) => page % 50 > 45);
  const fd = openSync(path, 'r+');
  writeSync(fd, CODE, 0, CODE.length, CODE_AT);
  closeSync(fd);
}

for (const cpus of [1, 2]) {
  for (const how of ['reads', 'writes'] as const) {
    for (const window of [1, 16]) {
      test(`${how} by ${cpus === 1 ? 'one processor' : `${cpus} processors`}, window ${window}`, async () => {
        // Few machines let a guest of theirs have guests: nobody can be required to have /dev/kvm.
        if (missing !== undefined) leaveOut(missing);
        needKernelFaults();
        const { monitor, stats } = await served(['--window', `${window}`], image, (socket, memory) => [
          ...[process.execPath, MONITOR, socket, memory, `${cpus}`],
          ...(how === 'writes' ? ['write'] : []),
        ]);
        assert.is(monitor.code, 0, `${monitor.stdout}${monitor.stderr}`);
        const told = JSON.parse(monitor.stdout) as Told;
        assert.equal(
          { ...told, removed: 0 },
          { pages: PAGES, cpus, removed: 0, absent: 0, wrong: 0, wrongSums: 0 },
        );
        assert.ok(told.removed > 0);
        const [session] = stats.sessions;
        assert.is(session?.end, 'exited');
        assert.is(session?.counts.taken, told.removed * P);
        const faults = session?.counts.faults ?? 0;
        // In windows a fault brings several pages.
        assert.ok(faults >= (window === 1 ? PAGES + told.removed : PAGES / window), `${faults} faults`);
      });
    }
  }
}

test.run();
