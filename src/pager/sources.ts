// Opens the source of a pager, and what it writes to, in the pager's thread.

import { type CustomSource, checkSource, PARALLEL } from './custom-source.js';
import { openFileSource } from './file-source.js';
import { JournaledFile } from './journal-file.js';
import type { PagerPlan, SourcePlan, WritablePlan } from './messages.js';
import type { ModuleSource } from './module-description.js';
import { overlaid } from './overlaid-source.js';
import { Overlay } from './overlay-file.js';
import { type ProgramCalls, programSink, programSource } from './program-calls.js';
import { checkSink, type Sink, sinkTarget } from './sink.js';
import { type OpenSource, SourceError, type Target } from './source.js';
import { SwapStore } from './swap-file.js';

/** @throws what the source throws */
export async function openSource(
  { source: plan, blockSize, writable }: PagerPlan,
  calls: ProgramCalls,
  signal: AbortSignal,
): Promise<OpenSource> {
  switch (plan.kind) {
    case 'file':
      return openFileSource(plan, writable !== undefined && writable.to.kind !== 'overlay');
    case 'http':
      // Loaded when it is needed, and before any memory exists: loading uses libuv's pool.
      return (await import('./http-source.js')).openHttpSource(plan, signal);
    case 'chunks':
      return (await import('./chunk-source.js')).openChunkSource(plan, signal);
    case 'swap':
      return SwapStore.create(plan.folder, { ...plan, blockSize });
    case 'module':
      return openModule(plan, writable?.to.kind === 'source', signal);
    case 'program':
      return programSource(plan, calls);
  }
}

/**
 * Opens what a pager writes to. Returns the source to read from then.
 *
 * @throws OverlayError, JournalError, SourceError, Node's errors
 */
export function openTarget(
  { source: plan, blockSize }: PagerPlan,
  writable: WritablePlan,
  source: OpenSource,
  calls: ProgramCalls,
): { source: OpenSource; target: Target } {
  const { to, durability, journal } = writable;
  const options = { durability, ...(journal !== undefined && { journal }) };
  switch (to.kind) {
    case 'source': {
      const target = source.target ?? JournaledFile.open(pathOf(plan), { ...options, blockSize });
      return { source, target };
    }
    case 'overlay': {
      const { size, identity } = source;
      if (identity === undefined) throw new SourceError(withoutIdentity(plan), true);
      const target = Overlay.open(to.path, { size, blockSize, identity }, options);
      return { source: overlaid(source, target, blockSize), target };
    }
    case 'program':
      return { source: answeringLater(source), target: programSink(calls) };
  }
}

function pathOf(plan: SourcePlan): string {
  if (plan.kind !== 'file') throw new TypeError(`a source of kind ${plan.kind} cannot be written to`);
  return plan.path;
}

function withoutIdentity({ kind }: SourcePlan): string {
  const whose =
    kind === 'http'
      ? 'the server sends neither a strong ETag nor Last-Modified; let it send one'
      : "the module's source has no identity; give it one, a string that changes with the data";
  return `writable.to: an overlay would not notice that the source has changed when it is opened again: ${whose}, or write to a copy`;
}

/**
 * A source that answers at once keeps its thread out of the event loop, on which the answers of the program's sink come.
 */
function answeringLater(source: OpenSource): OpenSource {
  if (!source.immediate) return source;
  const { size, parallel } = source;
  return {
    size,
    parallel,
    async read(offset, into, signal, arrived) {
      await source.read(offset, into, signal, arrived);
    },
    close: () => source.close(),
  };
}

async function openModule(
  { url, data }: ModuleSource,
  written: boolean,
  signal: AbortSignal,
): Promise<OpenSource> {
  const { default: make } = await import(url);
  if (typeof make !== 'function') throw new TypeError(`${url} has no default export that makes a source`);
  // A signal that is aborted already calls no listener.
  signal.throwIfAborted();
  const made: CustomSource & Sink = await make(data, signal);
  const name = `the source that ${url} has made`;
  checkSource(made, name);
  if (written) checkSink(made, name, 'an object with write, because the pager is writable');
  return {
    size: made.size,
    parallel: made.parallel ?? PARALLEL,
    identity: made.identity,
    target: written ? sinkTarget(made) : undefined,
    read: (offset, into, aborted) => readCustom(made, offset, into, aborted),
    close: () => made.close?.(),
  };
}

/**
 * Reads into memory of its own, and copies: a source that goes on writing after it was aborted must not reach the
 * pager's memory.
 */
async function readCustom(
  source: CustomSource,
  offset: number,
  into: Uint8Array,
  signal: AbortSignal,
): Promise<void> {
  const bytes = new Uint8Array(into.length);
  await source.read(offset, bytes, signal);
  signal.throwIfAborted();
  into.set(bytes);
}
