// Watches memory with the fork event on, and starts a program with nobody there to read: see fork.once.test.ts,
// which kills it.

import { spawnSync } from 'node:child_process';
import { Userfaultfd } from '../../src/index.js';
import { map, P } from '../kernel/support.js';

const uffd = Userfaultfd.open({ features: ['event-fork'] });
uffd.register(map(1), P);
spawnSync('true');
uffd.close();
