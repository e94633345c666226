// The entry `userfaultfd/serve`: an external page-fault handler for microVM snapshots.

import '../linux.js';

export type { Peer } from '../../shim/socket.js';
export { Answers, type AnswersOptions, type Source } from './answers.js';
export type { RefusedGuest, ServerEvents } from './events.js';
export { type HandedOver, handOver } from './hand-over.js';
export { HandOffError, parseRegions, type Region } from './handoff.js';
export { MemoryFileError } from './memory-file.js';
export { identify, type MemoryIdentity } from './memory-identity.js';
export { notifySystemd } from './notify.js';
export { RecordError } from './record-file.js';
export { type ServeOptions, type Server, serve, type Vm } from './server.js';
export { type Session, type SessionEnd, SessionError } from './session.js';
export type { Recorded } from './session-task.js';
export { type Pool, type Shortage, ShortageError, type ShortageOptions } from './shortage.js';
export { SocketError } from './socket-path.js';
export { type Count, LATENCY_BOUNDS, Tally } from './tally.js';
export { WorkingSetError } from './working-set.js';
