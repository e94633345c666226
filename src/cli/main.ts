#!/usr/bin/env node
// The command `uffd`, and the file that its threads and processes are started with. All other modules are loaded after
// the compile cache is on.

import { useCompileCache } from './compile-cache.js';

useCompileCache();
const { start } = await import('./start.js');
await start(import.meta.url);
