// The entry `userfaultfd/pager`: more data than memory, filled when it is touched.

export type { PagerBudget } from './budget.js';
export { type ChunkSource, type ChunkSourceOptions, chunkSource } from './chunk-description.js';
export type { CustomSource } from './custom-source.js';
export { type FileSource, fileSource } from './file-description.js';
export { type HttpSource, type HttpSourceOptions, httpSource } from './http-description.js';
export type { Recovery } from './journal.js';
export { JournalError } from './journal-format.js';
export { type ModuleSource, moduleSource } from './module-description.js';
export type {
  AnonymousPagerOptions,
  OnReadError,
  PagerOptions,
  PagerSource,
  ReadFailure,
  Writable,
} from './options.js';
export { OverlayError } from './overlay-format.js';
export { Pager, type PagerRange, type PagerStats, type PinOptions } from './pager.js';
export { PagerMemory, type SharedPager } from './pager-memory.js';
export type { Sink } from './sink.js';
export { SourceError } from './source.js';
