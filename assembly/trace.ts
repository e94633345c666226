// The codec of traces: encodes records into blocks of bytes, and decodes them. It is a WebAssembly module of its own,
// and shares only the kernel's numbers with the core.
//
// Rules:
//  - A block is self-contained: its header has its length and checksum, and reading it needs no earlier
//    block. A truncated trace is readable up to its last whole block.
//  - The writer and the reader predict each record from the records before it, by the same rules, and only differences
//    are written. A kind is predicted from the two kinds before it, fields from the last record of the same kind, and
//    addresses from the fault that is being answered. A record that matches its prediction takes one byte, which
//    includes its time.
//  - Bytes from outside are checked before they are used. A damaged block gives the result BAD, not a crash, and takes
//    no more memory to read than an intact block.

import { SIZEOF_UFFD_MSG, UFFD_EVENT_PAGEFAULT, UFFDIO_API, uffd_msg_pagefault } from './abi';

// ---- records -----------------------------------------------------------------------------------------------

/** A record: one call or note that crossed the port. `fields` follow it. */
@unmanaged
class Record {
  kind: u32;
  /** Bytes in `payload`. */
  payloadBytes: u32;
  /** Microseconds since the recording began; never less than in the record before. */
  time: u64;
}

const FIELDS: u32 = 28;
export const record: usize = memory.data(16 + 28 * 8, 8);
const fields: usize = record + 16;

/** Length of the ring of the records that were read last. The ring is indexed by record number modulo HISTORY. */
const HISTORY: u32 = 16;
const RECORD_BYTES: u32 = 16 + 28 * 8;
const history: usize = memory.data(16 * (16 + 28 * 8), 8);
let recordsRead: u32 = 0;

/** Bytes of the largest payload. */
export const PAYLOAD_MOST: u32 = 32768;
export const payload: usize = memory.data(32768, 8);

// The kinds of records that the codec distinguishes; src/trace/codec.ts has all kinds. From IOCTL on, there is one kind
// for each request, by the lowest bits of its number. From NOTE on, there is one kind for each code of a note.
const READ: u32 = 4;
/** A read that found the kernel's queue empty. */
const READ_EMPTY: u32 = 5;
const ADDRESS_OF: u32 = 14;
/** A run of empty reads. */
const REPEAT: u32 = 31;
const IOCTL: u32 = 32;
const NOTE: u32 = 48;
const KINDS: u32 = 64;

// Notes: what the program called, and how its handler answered. The first six resolve faults.
export const NOTE_WRITEPROTECT: u32 = 5;
export const NOTE_ANSWER: u32 = 15;
/** An answer below this number comes from a fault's callback: deferred, or answered. */
const ANSWERS_OF_FAULTS: u64 = 2;

/** How many fields a record of each kind has; ioctls have more, depending on their request. */
// biome-ignore format: a table
const counts: usize = memory.data<u8>([
  0, 2, 1, 4, 3, 2, 9, 4, 2, 1, 2, 2, 3, 0, 2, 2, 2, 1, 1, 1, 0, 0, 4, 3, 3, 0, 0, 0, 0, 0, 0, 0,
  3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3,
  4, 4, 4, 4, 4, 4, 2, 2, 4, 2, 2, 1, 2, 1, 1, 1,
]);

/** The field of a note that holds its source address, and the field of ADDRESS_OF that holds the result. */
const SOURCE_FIELD: u32 = 3;
const ADDRESS_FIELD: u32 = 1;

// Fields of an ioctl: the descriptor, the request, the result, the words of the struct before the call, and the words
// after it.
const IOCTL_REQUEST: u32 = 1;
const IOCTL_RESULT: u32 = 2;
const IOCTL_WORDS: u32 = 3;
const WORDS_MOST: u32 = 12;
/** How many of the first words before the call may be predicted from something else than the last call's words. */
const SPECIAL_WORDS: u32 = 3;

/** The record kind of an ioctl. */
export function traceIoctlKind(request: u32): u32 {
  return IOCTL + (request == UFFDIO_API ? 15 : request & 15);
}

/** Number of words in the struct of a request. The request number encodes the size of the struct in bytes. */
function wordsOf(request: u64): u32 {
  return min(<u32>((request >> 16) & 0x3fff) >> 3, WORDS_MOST);
}

function field(index: u32): u64 {
  return load<u64>(fields + <usize>(index << 3));
}

/** How many fields the record has. For an ioctl this depends on its request, so that field must be known. */
function countOf(kind: u32): u32 {
  const count = <u32>load<u8>(counts + kind);
  return kind >= IOCTL && kind < NOTE ? count + 2 * wordsOf(field(IOCTL_REQUEST)) : count;
}

/** How many fields the record has that was read last. */
export function traceFields(): u32 {
  return countOf(changetype<Record>(record).kind);
}

/** Address of the record that was read `back` records before the last one: 1 to HISTORY. */
export function traceBefore(back: u32): usize {
  return history + ((recordsRead - back) % HISTORY) * RECORD_BYTES;
}

/** Saves the last read record to the ring before the next one overwrites it. */
function keep(): void {
  const slot = history + (recordsRead % HISTORY) * RECORD_BYTES;
  copyWords(slot, record, 2 + traceFields());
  recordsRead++;
}

/** Copies words. For a few words this is faster than memory.copy. */
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
/** Address, flags and thread of the last fault that was read. */
let faultAddress: u64 = 0;
let faultFlags: u64 = 0;
let faultTid: u32 = 0;
/** Kind of the last note of a call that resolves a fault; its fields are start, length, options, source. */
let noted: u32 = NOTE;
/** Whether that note belongs to the fault that is being answered. If not, the core fills the page from its source. */
let called: bool = false;
/** The version of the trace. In version 1 every fill is predicted from the last note. */
let version: u32 = 2;
/** Difference between the last two addresses of views. */
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
  called = version == 1;
  addressStep = 0;
}

/** Sets the version of the trace to read. To call before its first block is opened. */
export function traceVersion(its: u32): void {
  version = its;
}

function lastOf(kind: u32, index: u32): u64 {
  return load<u64>(last + <usize>((kind * FIELDS + index) << 3));
}

function predictedKind(): u32 {
  return <u32>load<u8>(following + kindBefore * KINDS + kindLast);
}

/** The page of the fault that is being answered, or was answered last. */
function expectedPage(): u64 {
  return load<u64>(expected + <usize>((expectedFirst % EXPECTED_MOST) << 3));
}

/** The predicted value of a field, from earlier records and earlier fields of this one. */
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

/** The predicted source address. If the program passed a view, ADDRESS_OF was recorded right before the fill. */
function predictedSource(): u64 {
  const told = lastOf(noted, SOURCE_FIELD);
  return told != 0 ? told : lastOf(ADDRESS_OF, ADDRESS_FIELD);
}

/** Whether a request has a source field behind its target, as COPY and MOVE have. */
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
  if (!called) return predictedFromSource(kind, index, source);
  if (index == 0) return lastOf(noted, 0);
  if (source && index == 1) return predictedSource();
  if (index == (source ? <u32>2 : <u32>1)) return lastOf(noted, 1);
  return lastOf(kind, IOCTL_WORDS + index);
}

/**
 * The predicted input of a fill from a source. The distance between its data and the last fill's data is expected to be
 * the distance between their pages.
 */
function predictedFromSource(kind: u32, index: u32, source: bool): u64 {
  const before = lastOf(kind, IOCTL_WORDS + index);
  if (index == 0) return expectedPage();
  return source && index == 1 ? before + (field(IOCTL_WORDS) - lastOf(kind, IOCTL_WORDS)) : before;
}

/**
 * A predicted word of the struct after the call: the same as before the call, except for the result field, which has
 * the whole length or −errno.
 */
function predictedOutput(kind: u32, index: u32, words: u32): u64 {
  if (!fills(kind) || index != words - 1) return field(IOCTL_WORDS + index);
  const result = field(IOCTL_RESULT);
  return result == 0 ? field(IOCTL_WORDS + (sourced(kind) ? <u32>2 : <u32>1)) : result;
}

/** Updates the predictor with the fields of a record that was written or read. */
function keepFields(kind: u32, count: u32): void {
  if (kind == ADDRESS_OF) {
    const before = lastOf(ADDRESS_OF, ADDRESS_FIELD);
    if (before != 0) addressStep = field(ADDRESS_FIELD) - before;
  }
  copyWords(last + <usize>((kind * FIELDS) << 3), fields, count);
}

/** Updates the predictor with everything else of the record. */
function learn(kind: u32): void {
  store<u8>(following + kindBefore * KINDS + kindLast, <u8>kind);
  kindBefore = kindLast;
  kindLast = kind;
  timeLast = changetype<Record>(record).time;
  if (kind == READ) {
    expectFaults();
  } else if (kind == NOTE + NOTE_ANSWER) {
    if (version == 1 || field(0) < ANSWERS_OF_FAULTS) expectNext();
    called = version == 1;
  } else if (kind >= NOTE) {
    if (kind > NOTE + NOTE_WRITEPROTECT) return;
    noted = kind;
    called = true;
  } else if (!called && fills(kind) && field(IOCTL_RESULT) == 0) {
    expectNext();
  }
}

/** Continues with the next expected page, because the current one is answered. */
function expectNext(): void {
  if (expectedCount <= 1) return;
  expectedFirst++;
  expectedCount--;
}

/** Remembers the addresses of the faults that a read returned; a read without faults changes nothing. */
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

/** The header of a block. */
@unmanaged
class Header {
  magic: u32;
  /** Bytes after the header. */
  bytes: u32;
  /** CRC-32 of everything after this field. */
  checksum: u32;
  records: u32;
  /** Microseconds at which the block begins. */
  time: u64;
}

export const HEADER_BYTES: u32 = 24;
const CHECKED_FROM: u32 = 12;
/** The bytes "UFTB". */
export const MAGIC: u32 = 0x42544655;
/** Bytes of the largest block after its header. */
export const BLOCK_MOST: u32 = 131072;
/** A block longer than this has to be sealed. */
export const BLOCK_FULL: u32 = 65536;
export const block: usize = memory.data(24 + 131072, 8);

let cursor: usize = 0;
let limit: usize = 0;
let records: u32 = 0;
let blockTime: u64 = 0;

// Results of reading.
export const BAD: i32 = -1;
export const END: i32 = 0;
export const OK: i32 = 1;

/** How many bytes each step of the checksum processes. */
const STRIDE: u32 = 8;
/** For each distance of a byte from the end of the step: what each value of that byte contributes to the checksum. */
const tables: usize = memory.data(8 * 256 * 4, 4);

function checksum(from: usize, bytes: u32): u32 {
  if (load<u32>(tables + 4) == 0) makeTables();
  let crc: u32 = 0xffffffff;
  let at = from;
  const end = from + <usize>bytes;
  for (; at + STRIDE <= end; at += STRIDE) {
    const low = crc ^ load<u32>(at);
    const high = load<u32>(at + 4);
    crc =
      entry(7, low) ^
      entry(6, low >>> 8) ^
      entry(5, low >>> 16) ^
      entry(4, low >>> 24) ^
      entry(3, high) ^
      entry(2, high >>> 8) ^
      entry(1, high >>> 16) ^
      entry(0, high >>> 24);
  }
  for (; at < end; at++) crc = entry(0, crc ^ <u32>load<u8>(at)) ^ (crc >>> 8);
  return ~crc;
}

function entry(distance: u32, byte: u32): u32 {
  return load<u32>(tables + <usize>(((distance << 8) | (byte & 0xff)) << 2));
}

/** Makes the tables, from the reflected polynomial of CRC-32 (IEEE 802.3). */
function makeTables(): void {
  for (let i: u32 = 0; i < 256; i++) {
    let value = i;
    for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
    store<u32>(tables + <usize>(i << 2), value);
  }
  for (let i: u32 = 256; i < STRIDE * 256; i++) {
    const before = load<u32>(tables + <usize>((i - 256) << 2));
    store<u32>(tables + <usize>(i << 2), entry(0, before) ^ (before >>> 8));
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

/** Writes the signed difference of two words in few bytes if it is small. */
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

/** Number of consecutive empty reads that are not written yet. They do not update the predictor. */
let run: u32 = 0;
let runTime: u64 = 0;

// The first byte of a record has one of two forms: AS_PREDICTED and the time; or the kind, and whether the fields are
// as predicted.
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

// Each of the next three functions writes a record, and empties its payload. `time`: whole microseconds since the
// recording began. The result is whether the block is full. A full block has to be sealed before the next record.

/** Writes an ioctl. The caller has put its struct, before and after the call, into the record. */
export function traceIoctl(time: f64, fd: i32, request: u32, result: i32): bool {
  store<i64>(fields, fd);
  store<u64>(fields + 8, request);
  store<i64>(fields + 16, result);
  return traceAppend(traceIoctlKind(request), time);
}

/**
 * Writes a record whose first three fields are integers. The caller has put the other fields and the payload into the
 * record.
 */
export function traceNumbers(kind: u32, time: f64, first: i32, second: i32, third: i32): bool {
  store<i64>(fields, first);
  store<i64>(fields + 8, second);
  store<i64>(fields + 16, third);
  return traceAppend(kind, time);
}

/** Writes a record. The caller has put its fields and its payload into the record. */
export function traceAppend(kind: u32, time: f64): bool {
  const it = changetype<Record>(record);
  it.kind = kind;
  it.time = max(<u64>time, timeLast);
  const count = countOf(kind);
  const same = fieldsAsPredicted(kind, count);
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
    if (!same) putFields(kind, count);
    putPayload(kind);
  }
  if (!same || !predictedByLast(kind)) keepFields(kind, count);
  learn(kind);
  records++;
  it.payloadBytes = 0;
  return cursor - block > BLOCK_FULL;
}

/** Whether every field of this kind is predicted by the last record of the kind alone. */
function predictedByLast(kind: u32): bool {
  return kind < IOCTL ? kind != ADDRESS_OF : kind > NOTE + NOTE_WRITEPROTECT;
}

function fieldsAsPredicted(kind: u32, count: u32): bool {
  if (predictedByLast(kind)) return asLast(kind, 0, count);
  if (kind >= IOCTL && kind < NOTE) return asLast(kind, 0, IOCTL_WORDS) && wordsAsPredicted(kind);
  for (let i: u32 = 0; i < count; i++) if (field(i) != predicted(kind, i)) return false;
  return true;
}

/** Whether the fields from `first` to before `end` are those of the last record of this kind. */
function asLast(kind: u32, first: u32, end: u32): bool {
  const before = last + <usize>((kind * FIELDS) << 3);
  for (let at = <usize>(first << 3); at < <usize>(end << 3); at += 8) {
    if (load<u64>(fields + at) != load<u64>(before + at)) return false;
  }
  return true;
}

/** Whether the words of an ioctl are as predicted. The words after the call are mostly the same as before it. */
function wordsAsPredicted(kind: u32): bool {
  const words = wordsOf(field(IOCTL_REQUEST));
  if (words == 0) return true;
  const special = min(words, SPECIAL_WORDS);
  for (let i: u32 = 0; i < special; i++) {
    if (field(IOCTL_WORDS + i) != predictedInput(kind, i)) return false;
  }
  if (!asLast(kind, IOCTL_WORDS + special, IOCTL_WORDS + words)) return false;
  const given = fields + <usize>(IOCTL_WORDS << 3);
  const after = given + <usize>(words << 3);
  for (let at: usize = 0; at < <usize>((words - 1) << 3); at += 8) {
    if (load<u64>(given + at) != load<u64>(after + at)) return false;
  }
  return field(IOCTL_WORDS + 2 * words - 1) == predictedOutput(kind, words - 1, words);
}

function putFields(kind: u32, count: u32): void {
  // The request comes first: it says how many fields follow.
  const ioctl = kind >= IOCTL && kind < NOTE;
  if (ioctl) putDifference(field(IOCTL_REQUEST), lastOf(kind, IOCTL_REQUEST));
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

// Encodings of a message: a fault that differs from the last one only in its address; any other fault; 32 raw bytes.
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
  // Page-aligned addresses are written as page numbers. A bit of the head byte says so.
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

/** Ends the block. Returns how many bytes to write, from `block` on; 0: the block is empty. */
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

/** Length in bytes of the block whose header lies at `block`, header included; BAD if there is no valid header. */
export function traceMeasure(): i32 {
  const it = changetype<Header>(block);
  return it.magic == MAGIC && it.bytes <= BLOCK_MOST ? <i32>(HEADER_BYTES + it.bytes) : BAD;
}

/** Opens the block at `block`: OK, or BAD if it is damaged. */
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
  keepFields(it.kind, countOf(it.kind));
  learn(it.kind);
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
