// Touches memory without end.

import { workerData } from 'node:worker_threads';
import { Mapping } from '../../../src/index.js';

const { bytes } = Mapping.attach(workerData);
for (let page = 0; ; page = (page + 1) % (bytes.length / 4096)) bytes[page * 4096]?.toString();
