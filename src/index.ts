// The package's main entry. Importing it never fails and asks nothing of the system.

import './linux.js';

export type { Ahead } from './channel.js';
export { UffdError, UnsupportedError } from './errors.js';
export type { Feature, KnownFeature, KnownOperation, Mode, Operation } from './features.js';
export { FEATURES, featureSince, OPERATIONS, operationSince } from './features.js';
export type { FaultHandler, OnError, Pagefault, RegisteredRange, SyncFaultHandler } from './handler.js';
export type {
  Kernel,
  KernelPort,
  LinearMemory,
  MemoryPlace,
  Processors,
  ThreadSeen,
  Watch,
} from './kernel.js';
export type { Wait } from './loop.js';
export { Mapping, type SharedMapping } from './mapping.js';
export type { AnonymousOptions, FileOptions, MappingOptions, MemoryOptions } from './mapping-plan.js';
export type {
  CopyOptions,
  FillOptions,
  MoveOptions,
  OpenOptions,
  PageState,
  PollOptions,
  Probe,
  ProbeOptions,
  RegisterOptions,
  SourceOptions,
  StartOptions,
  StartOptionsFor,
  Window,
  WrapOptions,
} from './options.js';
export type { Placement } from './placement.js';
export { Userfaultfd } from './userfaultfd.js';
