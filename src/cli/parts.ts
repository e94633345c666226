// What the command runs in threads and processes of their own.

import type { Parts } from '../embed.js';

export const PARTS: Parts = {
  guest: async () => (await import('./guest/monitor.js')).playMonitor(),
  vcpu: async () => (await import('./guest/vcpu.js')).playVcpu(),
  doors: async () => (await import('./doctor/access.js')).tryDoorsAsTold(),
  trials: async () => (await import('./doctor/trial-process.js')).makeTrialsAsTold(),
  toucher: async () => (await import('./doctor/touch-worker.js')).touchAsTold(),
  'fork-watcher': async () => (await import('./doctor/fork-watcher.js')).watchForks(),
};
