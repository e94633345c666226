// The codec of traces: records in, blocks of bytes out, and back. A module of its own; it shares nothing with the
// core but the kernel's numbers.
//
// Rules:
//  - A block stands for itself: its header has its length and checksum, and nothing of an earlier block is needed to
//    read it. A trace that was cut is readable to its last whole block.
//  - Each record is predicted from those before it, in the same way by writer and reader, and only what differs is
//    written: its kind from the two kinds before it, its fields from the last record of its kind, addresses from the
//    fault that is being answered. A record that is as predicted is one byte, its time included.
//  - Bytes from outside are checked before they are used: a damaged block is an answer (BAD), not a crash, and reading
//    it takes no more memory than a whole one.

import { SIZEOF_UFFD_MSG, UFFD_EVENT_PAGEFAULT, UFFDIO_API, uffd_msg_pagefault } from './abi';

// ---- records -----------------------------------------------------------------------------------------------

/** A record: what crossed the port. `fields` follow it. */
@unmanaged
class Record {
  kind: u32;
  /** Bytes in `payload`. */
  payloadBytes: u32;
  /** Microseconds since the recording began; never less than those of the record before. */
  time: u64;
}

const FIELDS: u32 = 28;
export const record: usize = memory.data(16 + 28 * 8, 8);
const fields: usize = record + 16;

/** The records that were read last, each where its number divided by HISTORY leaves its place. */
const HISTORY: u32 = 16;
const RECORD_BYTES: u32 = 16 + 28 * 8;
const history: usize = memory.data(16 * (16 + 28 * 8), 8);
let recordsRead: u32 = 0;

export const PAYLOAD_MOST: u32 = 32768;
export const payload: usize = memory.data(32768, 8);

// Kinds. Those from IOCTL on are one for each request, by its lowest bits; those from NOTE on one for each code.
export const META: u32 = 0;
export const USERFAULTFD: u32 = 1;
export const OPEN_DEVICE: u32 = 2;
export const IOCTL_VALUE: u32 = 3;
export const READ: u32 = 4;
/** A read that found the queue empty. */
export const READ_EMPTY: u32 = 5;
export const POLL: u32 = 6;
export const FCNTL: u32 = 7;
export const CLOSE: u32 = 8;
export const EVENTFD: u32 = 9;
export const PIDFD: u32 = 10;
export const OPEN_PAGEMAP: u32 = 11;
export const PAGE_SIZE_AT: u32 = 12;
/** Its answer is the record's own time. */
export const NOW: u32 = 13;
export const ADDRESS_OF: u32 = 14;
export const WATCH: u32 = 15;
export const AFTER: u32 = 16;
export const UNWATCH: u32 = 17;
export const READY: u32 = 18;
export const DUE: u32 = 19;
export const CONTENT: u32 = 20;
/** The last record of a trace that was closed. */
export const LAST: u32 = 21;
const REPEAT: u32 = 31;
export const IOCTL: u32 = 32;
export const NOTE: u32 = 48;
const KINDS: u32 = 64;

// Notes: what the program asked of the library, and what its handler answered. The first six resolve faults.
export const NOTE_WRITEPROTECT: u32 = 5;
export const NOTE_ANSWER: u32 = 15;

/** Fields that a record of each kind has; ioctls have more, by their request. */
// biome-ignore format: a table
const counts: usize = memory.data<u8>([
  0, 2, 1, 4, 3, 2, 9, 4, 2, 1, 2, 2, 3, 0, 2, 2, 2, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
  3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3,
  4, 4, 4, 4, 4, 4, 2, 2, 4, 2, 2, 1, 2, 1, 1, 1,
]);

/** Where a note has its source, and where the answer to ADDRESS_OF is. */
const SOURCE_FIELD: u32 = 3;
const ADDRESS_FIELD: u32 = 1;

// Fields of an ioctl: the descriptor, these, then the struct's words as they were given, then as they came back.
const IOCTL_REQUEST: u32 = 1;
const IOCTL_RESULT: u32 = 2;
const IOCTL_WORDS: u32 = 3;
const WORDS_MOST: u32 = 12;

/** The kind of an ioctl's record. */
export function traceIoctlKind(request: u32): u32 {
  return IOCTL + (request == UFFDIO_API ? 15 : request & 15);
}

/** Words of the struct that a request takes: its number says how many bytes. */
function wordsOf(request: u64): u32 {
  return min(<u32>((request >> 16) & 0x3fff) >> 3, WORDS_MOST);
}

function field(index: u32): u64 {
  return load<u64>(fields + <usize>(index << 3));
}

/** How many fields the record has, as far as it is known. */
function countOf(kind: u32): u32 {
  const count = <u32>load<u8>(counts + kind);
  return kind >= IOCTL && kind < NOTE ? count + 2 * wordsOf(field(IOCTL_REQUEST)) : count;
}

/** How many fields the record that was read has. */
export function traceFields(): u32 {
  return countOf(changetype<Record>(record).kind);
}

/** Where the record lies that was read so many before the last one: 1 to HISTORY. */
export function traceBefore(back: u32): usize {
  return history + ((recordsRead - back) % HISTORY) * RECORD_BYTES;
}

/** Keeps the record that was read, before another takes its place. */
function keep(): void {
  const slot = history + (recordsRead % HISTORY) * RECORD_BYTES;
  copyWords(slot, record, 2 + traceFields());
  recordsRead++;
}

/** memory.copy takes longer than so few words do. */
function copyWords(to: usize, from: usize, count: u32): void {
  for (let at: usize = 0; at < <usize>(count << 3); at += 8) store<u64>(to + at, load<u64>(from + at));
}

// ---- prediction --------------------------------------------------------------------------------------------

const last: usize = memory.data(64 * 28 * 8, 8);
const following: usize = memory.data(64 * 64, 8);
const EXPECTED_MOST: u32 = 128;
const expected: usize = memory.data(128 * 8, 8);
let expectedFirst: u32 = 0;
let expectedCount: u32 = 0;
let kindBefore: u32 = 0;
let kindLast: u32 = 0;
let timeLast: u64 = 0;
/** Of the last fault that was read. */
let faultAddress: u64 = 0;
let faultFlags: u64 = 0;
let faultTid: u32 = 0;
/** Of the last call that was to resolve a fault: start, length, options, source. */
let noted: u32 = NOTE;
/** By how much the address of bytes differed from the one before it. */
let addressStep: u64 = 0;

function forget(): void {
  memory.fill(last, 0, 64 * 28 * 8);
  memory.fill(following, 0, 64 * 64);
  memory.fill(expected, 0, 128 * 8);
  expectedFirst = 0;
  expectedCount = 0;
  kindBefore = 0;
  kindLast = 0;
  faultAddress = 0;
  faultFlags = 0;
  faultTid = 0;
  noted = NOTE;
  addressStep = 0;
}

function lastOf(kind: u32, index: u32): u64 {
  return load<u64>(last + <usize>((kind * FIELDS + index) << 3));
}

function predictedKind(): u32 {
  return <u32>load<u8>(following + kindBefore * KINDS + kindLast);
}

/** The page that is being answered, or the one that was answered last. */
function expectedPage(): u64 {
  return load<u64>(expected + <usize>((expectedFirst % EXPECTED_MOST) << 3));
}

/** A field from what is known: earlier fields of the same record included. */
function predicted(kind: u32, index: u32): u64 {
  if (kind >= NOTE) return predictedNote(kind, index);
  if (kind >= IOCTL && index >= IOCTL_WORDS) return predictedWord(kind, index - IOCTL_WORDS);
  if (kind == ADDRESS_OF && index == ADDRESS_FIELD) return lastOf(kind, index) + addressStep;
  return lastOf(kind, index);
}

function predictedNote(kind: u32, index: u32): u64 {
  if (kind > NOTE + NOTE_WRITEPROTECT) return lastOf(kind, index);
  if (index == 0) return expectedPage();
  if (index == SOURCE_FIELD) {
    const source = lastOf(kind, SOURCE_FIELD);
    return source == 0 ? 0 : source + (field(0) - lastOf(kind, 0));
  }
  return lastOf(kind, index);
}

/** The source that the program named; where it gave bytes, their address was asked just before. */
function predictedSource(): u64 {
  const told = lastOf(noted, SOURCE_FIELD);
  return told != 0 ? told : lastOf(ADDRESS_OF, ADDRESS_FIELD);
}

/** Whether a request has a source behind its target: COPY and MOVE. */
function sourced(kind: u32): bool {
  return kind == IOCTL + 3 || kind == IOCTL + 5;
}

/** Whether a request resolves faults and has a result in its last word. */
function fills(kind: u32): bool {
  return kind >= IOCTL + 3 && kind <= IOCTL + 8 && kind != IOCTL + 6;
}

function predictedWord(kind: u32, index: u32): u64 {
  const words = wordsOf(field(IOCTL_REQUEST));
  return index < words ? predictedInput(kind, index) : predictedOutput(kind, index - words, words);
}

function predictedInput(kind: u32, index: u32): u64 {
  if (kind < IOCTL + 3 || kind > IOCTL + 8) return lastOf(kind, IOCTL_WORDS + index);
  const source = sourced(kind);
  if (index == 0) return lastOf(noted, 0);
  if (source && index == 1) return predictedSource();
  if (index == (source ? <u32>2 : <u32>1)) return lastOf(noted, 1);
  return lastOf(kind, IOCTL_WORDS + index);
}

/** What comes back is what was given, but for the result: all of it, or the errno. */
function predictedOutput(kind: u32, index: u32, words: u32): u64 {
  if (!fills(kind) || index != words - 1) return field(IOCTL_WORDS + index);
  const result = field(IOCTL_RESULT);
  return result == 0 ? field(IOCTL_WORDS + (sourced(kind) ? <u32>2 : <u32>1)) : result;
}

/** Takes in a record that was written or read. */
function learn(): void {
  const kind = changetype<Record>(record).kind;
  const count = countOf(kind);
  const addressBefore = lastOf(ADDRESS_OF, ADDRESS_FIELD);
  if (kind == ADDRESS_OF && addressBefore != 0) addressStep = field(ADDRESS_FIELD) - addressBefore;
  copyWords(last + <usize>((kind * FIELDS) << 3), fields, count);
  store<u8>(following + kindBefore * KINDS + kindLast, <u8>kind);
  kindBefore = kindLast;
  kindLast = kind;
  timeLast = changetype<Record>(record).time;
  if (kind >= NOTE && kind <= NOTE + NOTE_WRITEPROTECT) noted = kind;
  if (kind == NOTE + NOTE_ANSWER && expectedCount > 1) {
    expectedFirst++;
    expectedCount--;
  }
  if (kind == READ) expectFaults();
}

/** A read that brings no fault changes nothing. */
function expectFaults(): void {
  const bytes = changetype<Record>(record).payloadBytes;
  let count: u32 = 0;
  for (let at: u32 = 0; at + SIZEOF_UFFD_MSG <= bytes; at += SIZEOF_UFFD_MSG) {
    const message = changetype<uffd_msg_pagefault>(payload + at);
    if (message.event != UFFD_EVENT_PAGEFAULT || count == EXPECTED_MOST) continue;
    store<u64>(expected + <usize>(count << 3), message.address);
    count++;
  }
  if (count == 0) return;
  expectedFirst = 0;
  expectedCount = count;
}

// ---- blocks ------------------------------------------------------------------------------------------------

/** What stands at the start of a block. */
@unmanaged
class Header {
  magic: u32;
  /** Bytes behind the header. */
  bytes: u32;
  /** CRC-32 of everything behind this field. */
  checksum: u32;
  records: u32;
  /** Microseconds at which the block begins. */
  time: u64;
}

export const HEADER_BYTES: u32 = 24;
const CHECKED_FROM: u32 = 12;
/** "UFTB", as bytes in this order. */
export const MAGIC: u32 = 0x42544655;
export const BLOCK_MOST: u32 = 131072;
/** A block that is longer than this is to be sealed. */
export const BLOCK_FULL: u32 = 65536;
export const block: usize = memory.data(24 + 131072, 8);

let cursor: usize = 0;
let limit: usize = 0;
let records: u32 = 0;
let blockTime: u64 = 0;

// What reading answers.
export const BAD: i32 = -1;
export const END: i32 = 0;
export const OK: i32 = 1;

const table: usize = memory.data(256 * 4, 4);

function checksum(from: usize, bytes: u32): u32 {
  if (load<u32>(table + 4) == 0) makeTable();
  let crc: u32 = 0xffffffff;
  for (let i: u32 = 0; i < bytes; i++) {
    crc = load<u32>(table + <usize>(((crc ^ <u32>load<u8>(from + i)) & 0xff) << 2)) ^ (crc >>> 8);
  }
  return ~crc;
}

/** The reflected polynomial of CRC-32 (IEEE 802.3). */
function makeTable(): void {
  for (let i: u32 = 0; i < 256; i++) {
    let value = i;
    for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
    store<u32>(table + <usize>(i << 2), value);
  }
}

// ---- numbers -----------------------------------------------------------------------------------------------

function putByte(value: u32): void {
  store<u8>(cursor++, <u8>value);
}

function putNumber(value: u64): void {
  while (value >= 0x80) {
    putByte(<u32>(value & 0x7f) | 0x80);
    value >>= 7;
  }
  putByte(<u32>value);
}

/** The difference between two words, small ones short, whichever is larger. */
function putDifference(value: u64, from: u64): void {
  const difference = <i64>(value - from);
  putNumber(((<u64>difference) << 1) ^ <u64>(difference >> 63));
}

let broken: bool = false;

function takeByte(): u32 {
  if (cursor >= limit) {
    broken = true;
    return 0;
  }
  return load<u8>(cursor++);
}

function takeNumber(): u64 {
  let value: u64 = 0;
  for (let shift: u64 = 0; shift < 70; shift += 7) {
    const byte = takeByte();
    value |= (<u64>(byte & 0x7f)) << shift;
    if (byte < 0x80) return value;
  }
  broken = true;
  return 0;
}

function takeDifference(from: u64): u64 {
  const folded = takeNumber();
  return from + ((folded >> 1) ^ (0 - (folded & 1)));
}

// ---- writing -----------------------------------------------------------------------------------------------

/** Reads that found nothing, in a row behind another, which are not written yet. They are not learnt from. */
let run: u32 = 0;
let runTime: u64 = 0;

// A head: as predicted, and the time behind it; or the kind, and whether the fields are as predicted.
const AS_PREDICTED: u32 = 0x80;
const FIELDS_PREDICTED: u32 = 0x40;
const LONG_TIME: u32 = 0x7f;

/** Begins an empty block. */
export function traceBegin(time: u64): void {
  forget();
  cursor = block + HEADER_BYTES;
  records = 0;
  run = 0;
  blockTime = time;
  timeLast = time;
}

/** Writes the record that lies at `record`. True: the block is full, and is to be sealed before the next. */
export function traceAppend(): bool {
  const it = changetype<Record>(record);
  const kind = it.kind;
  if (it.time < timeLast) it.time = timeLast;
  const same = fieldsAsPredicted(kind);
  if (kind == READ_EMPTY && kindLast == READ_EMPTY && same) {
    run++;
    runTime = it.time;
    records++;
    return false;
  }
  endRun();
  if (it.time < timeLast) it.time = timeLast;
  const delta = it.time - timeLast;
  if (same && it.payloadBytes == 0 && kind == predictedKind()) {
    putByte(AS_PREDICTED | <u32>min<u64>(delta, LONG_TIME));
    if (delta >= LONG_TIME) putNumber(delta);
  } else {
    putByte(kind | (same ? FIELDS_PREDICTED : 0));
    putNumber(delta);
    if (!same) putFields(kind);
    putPayload(kind);
  }
  learn();
  records++;
  return cursor - block > BLOCK_FULL;
}

function fieldsAsPredicted(kind: u32): bool {
  const count = countOf(kind);
  // Most kinds are predicted by their last record alone, and so are an ioctl's fields before its words.
  const ioctl = kind >= IOCTL && kind < NOTE;
  const plain = ioctl
    ? IOCTL_WORDS
    : kind == ADDRESS_OF || (kind >= NOTE && kind <= NOTE + NOTE_WRITEPROTECT)
      ? 0
      : count;
  const before = last + <usize>((kind * FIELDS) << 3);
  for (let at: usize = 0; at < <usize>(plain << 3); at += 8) {
    if (load<u64>(fields + at) != load<u64>(before + at)) return false;
  }
  if (ioctl) return wordsAsPredicted(kind);
  for (let i = plain; i < count; i++) if (field(i) != predicted(kind, i)) return false;
  return true;
}

/** The same of an ioctl's words: what comes back is most often what was given. */
function wordsAsPredicted(kind: u32): bool {
  const words = wordsOf(field(IOCTL_REQUEST));
  for (let i: u32 = 0; i < words; i++) {
    if (field(IOCTL_WORDS + i) != predictedInput(kind, i)) return false;
    const output = i < words - 1 ? field(IOCTL_WORDS + i) : predictedOutput(kind, i, words);
    if (field(IOCTL_WORDS + words + i) != output) return false;
  }
  return true;
}

function putFields(kind: u32): void {
  // The request comes first: it says how many fields follow.
  const ioctl = kind >= IOCTL && kind < NOTE;
  if (ioctl) putDifference(field(IOCTL_REQUEST), lastOf(kind, IOCTL_REQUEST));
  const count = countOf(kind);
  let different: u64 = 0;
  for (let i: u32 = 0; i < count; i++) {
    if (!(ioctl && i == IOCTL_REQUEST) && field(i) != predicted(kind, i)) different |= (<u64>1) << i;
  }
  putNumber(different);
  for (let i: u32 = 0; i < count; i++) {
    if ((different >> i) & 1) putDifference(field(i), predicted(kind, i));
  }
}

function putPayload(kind: u32): void {
  const bytes = changetype<Record>(record).payloadBytes;
  if (kind != READ || bytes % SIZEOF_UFFD_MSG != 0) {
    putNumber(bytes << 1);
    memory.copy(cursor, payload, bytes);
    cursor += bytes;
    return;
  }
  putNumber(((bytes / SIZEOF_UFFD_MSG) << 1) | 1);
  for (let at: u32 = 0; at < bytes; at += SIZEOF_UFFD_MSG) putMessage(payload + at);
}

// A message: a fault like the one before but for its address; another fault; or 32 bytes as they are.
const LIKE_LAST: u32 = 0;
const FAULT: u32 = 1;
const RAW: u32 = 2;

function putMessage(at: usize): void {
  const it = changetype<uffd_msg_pagefault>(at);
  const plain = !it.reserved1 && !it.reserved2 && !it.reserved3 && !it.padding;
  if (it.event != UFFD_EVENT_PAGEFAULT || !plain) {
    putByte(RAW);
    memory.copy(cursor, at, SIZEOF_UFFD_MSG);
    cursor += SIZEOF_UFFD_MSG;
    return;
  }
  // Whole pages are told in pages: what is left of the lowest twelve bits goes into the head.
  const aligned = (it.address | faultAddress) & 0xfff ? <u32>0 : <u32>4;
  if (it.flags == faultFlags && it.ptid == faultTid) {
    putByte(LIKE_LAST | aligned);
  } else {
    putByte(FAULT | aligned);
    putNumber(it.flags);
    putNumber(it.ptid);
  }
  const shift: u64 = aligned ? 12 : 0;
  putDifference(it.address >> shift, faultAddress >> shift);
  noteFault(it);
}

function noteFault(it: uffd_msg_pagefault): void {
  faultAddress = it.address;
  faultFlags = it.flags;
  faultTid = it.ptid;
}

function endRun(): void {
  if (run == 0) return;
  putByte(REPEAT);
  putNumber(run);
  putNumber(runTime - timeLast);
  timeLast = runTime;
  run = 0;
}

/** Ends the block: how many bytes from `block` on are to be written; 0: there is nothing in it. */
export function traceSeal(): u32 {
  endRun();
  if (records == 0) return 0;
  const it = changetype<Header>(block);
  it.magic = MAGIC;
  it.bytes = <u32>(cursor - block) - HEADER_BYTES;
  it.records = records;
  it.time = blockTime;
  it.checksum = checksum(block + CHECKED_FROM, HEADER_BYTES - CHECKED_FROM + it.bytes);
  return HEADER_BYTES + it.bytes;
}

// ---- reading -----------------------------------------------------------------------------------------------

/** Bytes of the block whose header lies at `block`, header included; BAD where it is none. */
export function traceMeasure(): i32 {
  const it = changetype<Header>(block);
  return it.magic == MAGIC && it.bytes <= BLOCK_MOST ? <i32>(HEADER_BYTES + it.bytes) : BAD;
}

/** Opens the block that lies at `block`: OK, or BAD where it was damaged. */
export function traceOpen(): i32 {
  const it = changetype<Header>(block);
  if (traceMeasure() == BAD) return BAD;
  if (it.checksum != checksum(block + CHECKED_FROM, HEADER_BYTES - CHECKED_FROM + it.bytes)) return BAD;
  forget();
  cursor = block + HEADER_BYTES;
  limit = cursor + it.bytes;
  records = it.records;
  timeLast = it.time;
  run = 0;
  broken = false;
  return OK;
}

/** Reads the next record of the block into `record` and `payload`: OK, END or BAD. */
export function traceNext(): i32 {
  if (records == 0) return cursor == limit && run == 0 ? END : BAD;
  records--;
  keep();
  const it = changetype<Record>(record);
  if (run > 0) return nextOfRun(it);
  const head = takeByte();
  it.payloadBytes = 0;
  if (head & AS_PREDICTED) {
    it.kind = predictedKind();
    takePredicted(it.kind);
    const delta = <u64>(head & LONG_TIME);
    it.time = timeLast + (delta == LONG_TIME ? takeNumber() : delta);
  } else if (head == REPEAT) {
    const length = takeNumber();
    runTime = timeLast + takeNumber();
    if (broken || length == 0 || length > <u64>records + 1) return BAD;
    run = <u32>length;
    return nextOfRun(it);
  } else {
    it.kind = head & (KINDS - 1);
    it.time = timeLast + takeNumber();
    if (head & FIELDS_PREDICTED) takePredicted(it.kind);
    else takeFields(it.kind);
    takePayload(it.kind);
  }
  if (broken) return BAD;
  learn();
  return OK;
}

function nextOfRun(it: Record): i32 {
  it.kind = READ_EMPTY;
  it.payloadBytes = 0;
  takePredicted(READ_EMPTY);
  it.time = timeLast + (runTime - timeLast) / run;
  timeLast = it.time;
  run--;
  return OK;
}

function takePredicted(kind: u32): void {
  for (let i: u32 = 0; i < countOf(kind); i++) store<u64>(fields + <usize>(i << 3), predicted(kind, i));
}

function takeFields(kind: u32): void {
  const ioctl = kind >= IOCTL && kind < NOTE;
  const request = fields + <usize>(IOCTL_REQUEST << 3);
  if (ioctl) store<u64>(request, takeDifference(lastOf(kind, IOCTL_REQUEST)));
  const count = countOf(kind);
  const different = takeNumber();
  if (different >> count) broken = true;
  for (let i: u32 = 0; i < count; i++) {
    if (ioctl && i == IOCTL_REQUEST) continue;
    const value = predicted(kind, i);
    store<u64>(fields + <usize>(i << 3), (different >> i) & 1 ? takeDifference(value) : value);
  }
}

function takePayload(kind: u32): void {
  const it = changetype<Record>(record);
  const told = takeNumber();
  const messages = (told & 1) != 0;
  const bytes = (told >> 1) * (messages ? <u64>SIZEOF_UFFD_MSG : 1);
  if (bytes > <u64>PAYLOAD_MOST || (messages && kind != READ)) {
    broken = true;
    return;
  }
  if (!messages) {
    if (<u64>(limit - cursor) < bytes) {
      broken = true;
      return;
    }
    memory.copy(payload, cursor, <usize>bytes);
    cursor += <usize>bytes;
  } else {
    for (let at: usize = 0; at < <usize>bytes && !broken; at += SIZEOF_UFFD_MSG) takeMessage(payload + at);
  }
  it.payloadBytes = <u32>bytes;
}

function takeMessage(at: usize): void {
  const head = takeByte();
  memory.fill(at, 0, SIZEOF_UFFD_MSG);
  if (head == RAW) {
    if (limit - cursor < SIZEOF_UFFD_MSG) {
      broken = true;
      return;
    }
    memory.copy(at, cursor, SIZEOF_UFFD_MSG);
    cursor += SIZEOF_UFFD_MSG;
    return;
  }
  const it = changetype<uffd_msg_pagefault>(at);
  it.event = <u8>UFFD_EVENT_PAGEFAULT;
  it.flags = faultFlags;
  it.ptid = faultTid;
  if ((head & 3) == FAULT) {
    it.flags = takeNumber();
    it.ptid = <u32>takeNumber();
  }
  const shift: u64 = head & 4 ? 12 : 0;
  it.address = takeDifference(faultAddress >> shift) << shift;
  if (head > 5) broken = true;
  noteFault(it);
}
