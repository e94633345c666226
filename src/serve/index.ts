// The entry `userfaultfd/serve`: an external page-fault handler for microVM snapshots.

import '../kernel/linux.js';

export type { Peer } from '../../shim/socket.js';
export { cacheContents, clearCache } from './chunk-cache.js';
export type { TierCounts } from './chunk-loader.js';
export { type Count, LATENCY_BOUNDS, Tally } from './counters.js';
export type { RefusedGuest, ServerEvents, Vm } from './events.js';
export type { FileRange } from './extents.js';
export { type GuestSession as Session, type SessionEnd, SessionError } from './guest-session.js';
export { type HandedOver, handOver, type RequestedMemory, requestSharedMemory } from './handoff-client.js';
export { HandOffError, parseRegions, type Region } from './handoff-protocol.js';
export { MemoryFileError } from './memory-file.js';
export { identify, type MemoryIdentity } from './memory-identity.js';
export { notifySystemd } from './notify.js';
export { RecordError } from './record-file.js';
export type { StorageCounts } from './remote-memory.js';
export { CACHE_BYTES, type ServeOptions, type Server, serve } from './server.js';
export type { SharingCounts } from './shared-pages.js';
export { type Pool, type Shortage, ShortageError, type ShortageOptions } from './shortage.js';
export {
  type SharedSource,
  SnapshotHandler as Answers,
  type SnapshotHandlerOptions as AnswersOptions,
  type Source,
  type SourceExtent,
  StoreDeadlineError,
} from './snapshot-handler.js';
export { SocketError } from './socket-path.js';
export { type WarmCacheCounts, type WarmCacheOptions, warmCache } from './warm-cache.js';
export type { Recorded } from './worker-messages.js';
export { WorkingSetError } from './working-set.js';
