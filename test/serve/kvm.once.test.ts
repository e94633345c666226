// A virtual machine resumes from a memory file that `uffd serve` serves: its page faults come from the hypervisor, the
// first of them for the guest's code.

import { closeSync, openSync, writeSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import * as assert from 'uvu/assert';
import { CODE, CODE_AT, whyNoKvm } from '../guest/kvm.js';
import { leaveOut, seed, suite } from '../support/harness.js';
import { needKernelFaults } from '../support/real-kernel.js';
import { P, served, writeMemory } from './support/serve-process.js';

const MONITOR = fileURLToPath(new URL('../guest/kvm-monitor.js', import.meta.url));
const PAGES = 1024;

const test = suite('serve/kvm');
const start = seed();
const missing = whyNoKvm();

/** What kvm-monitor.ts prints at its end. */
interface Outcome {
  pages: number;
  cpus: number;
  removed: number;
  absent: number;
  wrong: number;
  wrongSums: number;
}

/** Writes a memory file that contains the guest's code. */
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
        // Nested virtualization is rare, so /dev/kvm is optional even if UFFD_REQUIRE_KERNEL is set.
        if (missing !== undefined) leaveOut(missing);
        needKernelFaults();
        const { monitor, stats } = await served(['--window', `${window}`], image, (socket, memory) => [
          ...[process.execPath, MONITOR, socket, memory, `${cpus}`],
          ...(how === 'writes' ? ['write'] : []),
        ]);
        assert.is(monitor.code, 0, `${monitor.stdout}${monitor.stderr}`);
        const outcome = JSON.parse(monitor.stdout) as Outcome;
        assert.equal(
          { ...outcome, removed: 0 },
          { pages: PAGES, cpus, removed: 0, absent: 0, wrong: 0, wrongSums: 0 },
        );
        assert.ok(outcome.removed > 0);
        const [session] = stats.sessions;
        assert.is(session?.end, 'exited');
        assert.is(session?.counts.taken, outcome.removed * P);
        const faults = session?.counts.faults ?? 0;
        // A fault installs at most one window, and zeros of removed pages come in longer runs.
        assert.ok(faults >= (PAGES - outcome.removed) / window, `${faults} faults`);
      });
    }
  }
}

test.run();
