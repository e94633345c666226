// The entry `userfaultfd/dirty`: which pages were written, and incremental checkpoints.

export { type Checkpoint, CheckpointError } from './checkpoint-file.js';
export type { DirtyRun } from './pages.js';
export type { MemoryRange } from './target.js';
export { type CheckpointOptions, type DirtyOptions, DirtyTracker, type RestoreOptions } from './tracker.js';
