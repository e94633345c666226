// The entry `userfaultfd/trace`: recordings of what crossed the port, and their replay. Runs anywhere.

export { TraceError, type TraceMeta, TraceReader, type TraceSource } from './reader.js';
export { type HandlerFactory, type ReplayOptions, type ReplayResult, replay } from './replay.js';
export type { Difference } from './replaying.js';
export { type TraceOptions, type TraceSink, TraceWriter } from './writer.js';
