// Watches memory with EVENT_FORK, and starts a program while no thread reads the userfaultfd, so the fork never
// returns. fork.once.test.ts runs this process and kills it.

import { spawnSync } from 'node:child_process';
import { Userfaultfd } from '../../src/index.js';
import { map, P } from '../support/real-kernel.js';

const uffd = Userfaultfd.open({ features: ['event-fork'] });
uffd.register(map(1), P);
spawnSync('true');
uffd.close();
