// The parts of the command that run in threads and processes of their own.

import type { Parts } from '../embed.js';

export const PARTS: Parts = {
  guest: async () => (await import('./guest/monitor.js')).runMonitor(),
  vcpu: async () => (await import('./guest/vcpu.js')).runVcpu(),
  'pager-reader': async () => (await import('./demo/pager-reader.js')).runPagerReader(),
  trials: async () => (await import('./doctor/trials.js')).runTrials(),
  toucher: async () => (await import('./doctor/toucher.js')).runToucher(),
  'fork-reader': async () => (await import('./doctor/fork-trial.js')).playForkReader(),
};
