// The package's main entry. Importing it never fails and makes no system call.

import './kernel/linux.js';

export { UffdError, UnsupportedError } from './errors/errors.js';
export type { Feature, KnownFeature, KnownOperation, Mode, Operation } from './kernel/features.js';
export { FEATURES, featureSince, OPERATIONS, operationSince } from './kernel/features.js';
export type {
  Kernel,
  KernelPort,
  LinearMemory,
  Processors,
  ThreadSeen,
  Watch,
} from './kernel/port.js';
export { Mapping, type SharedMapping } from './memory/mapping.js';
export type { AnonymousOptions, FileOptions, MappingOptions, MemoryOptions } from './memory/mapping-plan.js';
export type { Placement } from './scheduling/affinity.js';
export type { Wait } from './uffd/event-loop.js';
export type { HandlerOf, OnError, Pagefault } from './uffd/handler.js';
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
} from './uffd/options.js';
export type { RegisteredRange } from './uffd/registered-range.js';
export type { Ahead } from './uffd/session.js';
export { type FaultHandler, type SyncFaultHandler, Userfaultfd } from './uffd/userfaultfd.js';
