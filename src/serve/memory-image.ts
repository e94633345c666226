// The memory of a guest as a snapshot has it: a memory file, and diff snapshots on top of it. A hole of the file is
// zeros; a hole of a diff means: as below. Holes are not read.
//
// Rule: a file system that keeps holes only in blocks larger than a page shows zeros that the monitor never wrote, and
// these would hide what is below. A diff is used only if its holes show that this is not so.

import { closeSync, constants, fstatSync, openSync } from 'node:fs';
import { readAt } from '../../shim/descriptors.js';
import { hugeFilePageSize } from '../../shim/memory.js';
import { UffdError } from '../errors/errors.js';
import { Extents } from './extents.js';
import { SYSTEM_PAGE } from './handoff-protocol.js';
import { type LayerExtent, layerAt } from './layered-plan.js';
import { identifyBy, type MemoryIdentity, sizeOf } from './memory-identity.js';

/** A memory file, or a diff on top of it, that cannot be used. */
export class MemoryImageError extends Error {
  override readonly name = 'MemoryImageError';
  readonly code = 'ERR_UFFD_MEMORY_IMAGE';
}

interface Layer {
  readonly path: string;
  readonly fd: number;
  readonly extents: Extents;
  /** Size and times when it was opened. */
  readonly version: string;
}

export class MemoryImage {
  /** Bytes. */
  readonly size: number;
  readonly #layers: Layer[] = [];

  /**
   * @param base the memory file; a block device, too
   * @param diffs diff snapshots of the same size, the oldest first
   * @throws MemoryImageError; the errors of open(2)
   */
  constructor(base: string, diffs: readonly string[] = []) {
    try {
      this.size = this.#open(base, undefined);
      for (const diff of diffs) this.#open(diff, this.size);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  #open(path: string, expected: number | undefined): number {
    // Opening a FIFO would block.
    const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      const stat = fstatSync(fd);
      if (!stat.isFile() && (expected !== undefined || !stat.isBlockDevice()))
        throw new MemoryImageError(
          `${path} is no ${expected === undefined ? 'file or block device' : 'file'}`,
        );
      const bytes = sizeOf(fd, stat);
      if (bytes < 0) throw new UffdError(bytes, 'lseek');
      if (bytes === 0) throw new MemoryImageError(`${path} is empty`);
      if (expected !== undefined && bytes !== expected) {
        throw new MemoryImageError(
          `${path} has ${bytes} bytes and the memory file ${expected}; a diff has the size of the memory that it changes`,
        );
      }
      // The blocks of a file with holes may be as many as its bytes need, so the holes of a diff are always looked for.
      const sparse = expected !== undefined || (stat.isFile() && stat.blocks * 512 < bytes);
      const readUnit = (sparse && hugeFilePageSize(fd)) || 0;
      const extents = new Extents({ fd, bytes, sparse, readUnit });
      if (expected !== undefined) checkBlocks(path, extents, bytes, stat.blksize);
      this.#layers.push({ path, fd, extents, version: versionOf(fd) });
      return bytes;
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  }

  /**
   * The part around an offset whose bytes are in the same layer.
   *
   * @internal
   */
  at(offset: number): LayerExtent {
    return layerAt(this.#layers, this.size, offset);
  }

  /**
   * The open file of a layer.
   *
   * @internal
   */
  descriptorOf(layer: number): number {
    return (this.#layers[layer] as Layer).fd;
  }

  /**
   * Reads a part. Returns false, and leaves `into` as it is, if all of it is holes.
   *
   * @throws MemoryImageError, UffdError
   */
  read(offset: number, into: Uint8Array): boolean {
    let any = false;
    for (let at = 0; at < into.length; ) {
      const { to, data, layer } = this.at(offset + at);
      const end = Math.min(into.length, to - offset);
      if (data) {
        if (!any && end - at < into.length) into.fill(0);
        any = true;
        const { path, fd } = this.#layers[layer] as Layer;
        readWhole(path, fd, offset + at, into.subarray(at, end));
      }
      at = end;
    }
    return any;
  }

  /** The identity of the memory, as if it were in one file. */
  get identity(): MemoryIdentity {
    return identifyBy(this.size, (page, at) => {
      const part = page.subarray(0, Math.min(page.length, this.size - at));
      if (!this.read(at, part)) part.fill(0);
      return part.length;
    });
  }

  /** The diffs that have no hole at all: they replace everything below. */
  get wholeDiffs(): readonly string[] {
    const whole = this.#layers.slice(1).filter(({ extents }) => {
      const { to, data } = extents.at(0);
      return data && to >= this.size;
    });
    return whole.map(({ path }) => path);
  }

  /** @throws MemoryImageError if a file was written to since it was opened */
  checkUnchanged(): void {
    for (const { path, fd, version } of this.#layers) {
      if (versionOf(fd) !== version)
        throw new MemoryImageError(
          `${path} has changed while it was read; pack it when no monitor writes to it`,
        );
    }
  }

  close(): void {
    for (const { fd } of this.#layers.splice(0)) closeSync(fd);
  }
}

/**
 * The extents of a diff must not all begin and end at the file system's blocks, if these are larger than a page.
 *
 * @throws MemoryImageError
 */
function checkBlocks(path: string, extents: Extents, bytes: number, block: number): void {
  if (block <= SYSTEM_PAGE) return;
  let any = false;
  for (let at = 0; at < bytes; ) {
    const { to, data } = extents.at(at);
    if (data && (at % block !== 0 || (to < bytes && to % block !== 0))) return;
    any ||= data;
    at = to;
  }
  if (!any) return;
  throw new MemoryImageError(
    `${path} lies on a file system with blocks of ${block} bytes, so zeros around what the monitor wrote may hide the memory below; let the monitor write diffs to a file system with blocks of ${SYSTEM_PAGE} bytes`,
  );
}

function versionOf(fd: number): string {
  const { size, mtimeNs } = fstatSync(fd, { bigint: true });
  return `${size} ${mtimeNs}`;
}

const EINTR = -4;

function readWhole(path: string, fd: number, offset: number, into: Uint8Array): void {
  for (let done = 0; done < into.length; ) {
    const read = readAt(fd, into.subarray(done), offset + done);
    if (read === EINTR) continue;
    if (read < 0) throw new MemoryImageError(`${path}: ${new UffdError(read, 'pread').message}`);
    if (read === 0) throw new MemoryImageError(`${path} became shorter while it was read`);
    done += read;
  }
}
