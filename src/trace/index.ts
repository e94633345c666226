// The entry `userfaultfd/trace`: recordings of what crossed the port, and their replay. Runs anywhere.

export { decodeMessages, type Message } from '../uffd/messages.js';
export { Kind } from './codec.js';
export { perfettoJson } from './perfetto.js';
export { TraceError, type TraceMeta, TraceReader, type TraceSource } from './reader.js';
export { type Call, describe, nameOf } from './record-format.js';
export { type HandlerFactory, type ReplayOptions, type ReplayResult, replay } from './replay.js';
export type { Difference } from './replay-port.js';
export { summarize, type TraceObserver, TraceSummarizer, type TraceSummary } from './summary.js';
export { type TraceOptions, type TraceSink, TraceWriter } from './writer.js';
