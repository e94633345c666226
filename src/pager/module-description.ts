// The description of a source that a module makes in the pager's thread.

import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { wrongType } from '../errors/arguments.js';

/** Describes a source that a module makes. */
export interface ModuleSource {
  readonly kind: 'module';
  readonly url: string;
  readonly data: unknown;
}

/**
 * A source that runs in the pager's thread. Its reads must not use libuv's thread pool (`fs` other than its synchronous
 * calls, dns.lookup, asynchronous zlib and crypto): the pool's four threads may be asleep in faults that only this
 * thread answers.
 *
 * @param module a path or URL of an ES module whose default export is a function: it gets `data` and an AbortSignal, and
 *   returns a `CustomSource` or a promise of one
 * @param data is copied to the pager's thread
 */
export function moduleSource(module: string | URL, data?: unknown): ModuleSource {
  if (!(module instanceof URL) && typeof module !== 'string')
    throw wrongType('module', 'a path or a URL', module);
  const isUrl = module instanceof URL || /^(file|data|node):/.test(module);
  return { kind: 'module', url: isUrl ? String(module) : pathToFileURL(resolve(module)).href, data };
}
