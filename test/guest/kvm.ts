// Virtual machines with /dev/kvm (Documentation/virt/kvm/api.rst), for a guest without devices: some memory, and
// processors that run a few lines of 32-bit code in flat segments, without paging.
//
// Rule: the guest's code lies in the guest's memory, so its first page fault is for the code.

import { libc } from '../../shim/libc.js';
import { MAP_SHARED, mmap, PROT_READ, PROT_WRITE, view } from '../../shim/memory.js';

const O_RDWR_CLOEXEC = 0x80002;
const EINTR = 4;

const KVM_CREATE_VM = 0xae01;
const KVM_GET_VCPU_MMAP_SIZE = 0xae04;
const KVM_CREATE_VCPU = 0xae41;
const KVM_SET_USER_MEMORY_REGION = 0x4020ae46;
const KVM_SET_TSS_ADDR = 0xae47;
const KVM_RUN = 0xae80;
const KVM_SET_REGS = 0x4090ae82;
const KVM_GET_SREGS = 0x8138ae83;
const KVM_SET_SREGS = 0x4138ae84;

const KVM_EXIT_IO = 2;
const KVM_EXIT_HLT = 5;

/** Three pages that KVM needs on older Intel processors, at an address where no guest has memory. */
const TSS_AT = 0xfffbd000;

/** struct kvm_run: the exit reason; for an exit by I/O, the offset of the data. */
const RUN_EXIT_REASON = 8;
const RUN_IO_DATA_OFFSET = 40;
/** struct kvm_sregs: six segments of 24 bytes, beginning with cs; and the offset of cr0. */
const SREGS_BYTES = 312;
const SEGMENT_BYTES = 24;
const SEGMENTS = 6;
const SREGS_CR0 = 224;
const CR0_PE = 1n;
/** struct kvm_segment: limit, selector, type; then a byte for each bit of the descriptor. */
const SEGMENT_LIMIT = 8;
const SEGMENT_SELECTOR = 12;
const SEGMENT_TYPE = 14;
const SEGMENT_BITS = { present: 15, db: 17, s: 18, g: 20 };
const TYPE_CODE = 11;
const TYPE_DATA = 3;
/** struct kvm_regs: 64 bits each. */
const REGS_BYTES = 144;
const REGS = { ecx: 16, edx: 24, esi: 32, ebp: 56, eip: 128, flags: 136 };
const FLAGS_ALWAYS = 2n;

/** The code's address in the guest: in its second page, behind the words that walks read and write. */
export const CODE_AT = 0x1400;

/** Walks over ecx pages from esi on, edx bytes apart, and writes the sum of what it read to an I/O port. */
export const CODE = Uint8Array.from([
  ...[0x31, 0xc0], //             xor eax, eax
  ...[0x85, 0xed], //       next: test ebp, ebp
  ...[0x74, 0x03], //             jz read
  ...[0x89, 0x0c, 0xae], //       mov [esi + 4 * ebp], ecx
  ...[0x03, 0x06], //       read: add eax, [esi]
  ...[0xd1, 0xc0], //             rol eax, 1
  ...[0x01, 0xd6], //             add esi, edx
  ...[0x49], //                   dec ecx
  ...[0x75, 0xf0], //             jnz next
  ...[0xe7, 0x10], //             out 0x10, eax
  ...[0xf4], //                   hlt
]);

/** Memory of a virtual machine. */
export interface Slot {
  /** The guest's address of the memory. */
  readonly guest: number;
  /** This process's address of the memory. */
  readonly start: bigint;
  readonly length: number;
}

/** A request to a processor. */
export interface Walk {
  /** The guest's address of the first page. */
  readonly from: number;
  readonly pages: number;
  /** Bytes from one page to the next; may be negative. */
  readonly step: number;
  /** Index of the word to write in each page, before its first word is read: the number of pages left. 0: none. */
  readonly write: number;
}

/** The reason why virtual machines do not work here; undefined: they work. */
export function whyNoKvm(): string | undefined {
  if (process.arch !== 'x64') return `the guest's code is for x64, not ${process.arch}`;
  try {
    new Vm([]).close();
    return undefined;
  } catch (error) {
    return (error as Error).message;
  }
}

export class Vm {
  readonly fd: number;
  /** Size of the structure that a processor shares with this process. */
  readonly runBytes: number;

  constructor(slots: readonly Slot[]) {
    const c = libc();
    const kvm = c.open('/dev/kvm', O_RDWR_CLOEXEC);
    if (kvm < 0) throw new Error(`/dev/kvm cannot be opened: errno ${c.errno()}`);
    try {
      this.fd = call(kvm, KVM_CREATE_VM, 0, 'KVM_CREATE_VM');
      this.runBytes = call(kvm, KVM_GET_VCPU_MMAP_SIZE, 0, 'KVM_GET_VCPU_MMAP_SIZE');
    } finally {
      c.close(kvm);
    }
    call(this.fd, KVM_SET_TSS_ADDR, TSS_AT, 'KVM_SET_TSS_ADDR');
    for (const [index, { guest, start, length }] of slots.entries()) {
      const region = new BigUint64Array([BigInt(index), BigInt(guest), BigInt(length), start]);
      call(this.fd, KVM_SET_USER_MEMORY_REGION, c.koffi.address(region), 'KVM_SET_USER_MEMORY_REGION');
    }
  }

  close(): void {
    libc().close(this.fd);
  }
}

/** A processor. The thread that creates it also runs it. */
export class Cpu {
  readonly #fd: number;
  readonly #run: DataView;

  constructor(vm: number, runBytes: number, index: number) {
    this.#fd = call(vm, KVM_CREATE_VCPU, index, 'KVM_CREATE_VCPU');
    const run = mmap(0n, runBytes, PROT_READ | PROT_WRITE, MAP_SHARED, this.#fd);
    if (run < 0n) throw new Error(`mmap of a processor: errno ${-run}`);
    this.#run = new DataView(view(run, runBytes));
    const sregs = new DataView(new ArrayBuffer(SREGS_BYTES));
    call(this.#fd, KVM_GET_SREGS, libc().koffi.address(sregs), 'KVM_GET_SREGS');
    for (let segment = 0; segment < SEGMENTS; segment++) setFlat(sregs, segment);
    sregs.setBigUint64(SREGS_CR0, sregs.getBigUint64(SREGS_CR0, true) | CR0_PE, true);
    call(this.#fd, KVM_SET_SREGS, libc().koffi.address(sregs), 'KVM_SET_SREGS');
  }

  /** Runs the code until it halts, and returns the sum. */
  walk({ from, pages, step, write }: Walk): number {
    const regs = new DataView(new ArrayBuffer(REGS_BYTES));
    const values = { ecx: pages, edx: step >>> 0, esi: from, ebp: write, eip: CODE_AT };
    for (const [name, value] of Object.entries(values)) {
      regs.setBigUint64(REGS[name as keyof typeof values], BigInt(value), true);
    }
    regs.setBigUint64(REGS.flags, FLAGS_ALWAYS, true);
    call(this.#fd, KVM_SET_REGS, libc().koffi.address(regs), 'KVM_SET_REGS');
    let sum: number | undefined;
    for (;;) {
      call(this.#fd, KVM_RUN, 0, 'KVM_RUN');
      const reason = this.#run.getUint32(RUN_EXIT_REASON, true);
      if (reason === KVM_EXIT_IO) {
        sum = this.#run.getUint32(Number(this.#run.getBigUint64(RUN_IO_DATA_OFFSET, true)), true);
      } else if (reason === KVM_EXIT_HLT && sum !== undefined) {
        return sum;
      } else {
        throw new Error(`the guest has stopped: exit reason ${reason}`);
      }
    }
  }
}

/** Sets a flat 32-bit segment of 4 GiB from 0 on: code for cs, which is the first segment, data for the others. */
function setFlat(sregs: DataView, segment: number): void {
  const at = segment * SEGMENT_BYTES;
  sregs.setBigUint64(at, 0n, true);
  sregs.setUint32(at + SEGMENT_LIMIT, 0xffffffff, true);
  sregs.setUint16(at + SEGMENT_SELECTOR, segment === 0 ? 0x08 : 0x10, true);
  sregs.setUint8(at + SEGMENT_TYPE, segment === 0 ? TYPE_CODE : TYPE_DATA);
  for (const bit of Object.values(SEGMENT_BITS)) sregs.setUint8(at + bit, 1);
}

function call(fd: number, request: number, argument: number | bigint, name: string): number {
  const c = libc();
  for (;;) {
    const result = c.ioctl(fd, request, argument);
    if (result >= 0) return result;
    const errno = c.errno();
    if (errno !== EINTR) throw new Error(`${name}: errno ${errno}`);
  }
}
