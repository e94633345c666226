// The entry `userfaultfd/sim`: a simulated kernel, and the `Userfaultfd` that runs on it. No koffi, nothing of Node.

export { Userfaultfd } from '../userfaultfd.js';
export { Stuck } from './clock.js';
export { INJECTIONS, type Inject, type Injection } from './injection.js';
export { SimulatedKernel, type SimulatedMemory, type SimulationOptions } from './kernel.js';
export type { HugePool } from './pool.js';
export { type Chooser, Noted, Random, Script } from './random.js';
export {
  type Action,
  advise,
  bind,
  exec,
  exit,
  type ForkOptions,
  forked,
  lock,
  type Outcome,
  type Program,
  protect,
  read,
  readOf,
  remap,
  replace,
  SimulatedProcess,
  SimulatedThread,
  unmap,
  write,
} from './thread.js';
export type { By } from './touch.js';
export type { Witness } from './witness.js';
