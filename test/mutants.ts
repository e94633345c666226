// `npm run suite -- mutants`: breaks the core on purpose, one rule at a time, and demands that a test notices. Each
// mutant is built in a folder of its own; the pure tests of the core run on it until the first fails.

import { execFile } from 'node:child_process';
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import asc from 'assemblyscript/asc';
import { inline } from '../tools/inline.js';

interface Mutant {
  /** The rule that it breaks. */
  breaks: string;
  file: string;
  /** Occurs once in the file. */
  from: string;
  to: string;
  /** The tests that are to notice. */
  test: string;
}

const MUTANTS: Mutant[] = [
  {
    breaks: 'blocks beyond a limit that was lowered are evicted',
    file: 'pager/index.ts',
    from: 'reserved > limit && (evict() || cancelAhead())',
    to: 'reserved > limit && left > SHED_MOST',
    test: 'pager/worlds',
  },
  {
    breaks: 'pinned memory is written again for a flush that came while it was being written',
    file: 'pager/index.ts',
    from: ' && slot.flags & Flag.SNAPSHOT) slot.flags |= Flag.REWRITE',
    to: ' && slot.flags & Flag.SNAPSHOT) slot.flags |= 0',
    test: 'pager/worlds',
  },
  {
    breaks: 'a block that is being written does not change',
    file: 'pager/index.ts',
    from: '      emit(PagerAction.PROTECT, slot.block);\n',
    to: '',
    test: 'pager/worlds',
  },
  {
    breaks: 'a dirty block is unmapped before it is written and evicted',
    file: 'pager/index.ts',
    from: '      slot.flags &= ~Flag.MAPPED;\n      emit(PagerAction.DROP, slot.block);\n    } else {',
    to: '    } else {',
    test: 'pager/worlds',
  },
  {
    breaks: 'a block whose write failed is dirty again',
    file: 'pager/index.ts',
    from: '    addDirty(index);\n    writeDue = now + WRITE_DELAY_MS;',
    to: '    writeDue = now + WRITE_DELAY_MS;',
    test: 'pager/worlds',
  },
  {
    breaks: 'a clean block of a writable pager is mapped write-protected',
    file: 'pager/index.ts',
    from: 'const open = !isWritable() || (slot.flags & Flag.DIRTY && slot.state != State.WRITING);',
    to: 'const open = true;',
    test: 'pager/worlds',
  },
  {
    breaks: 'evicting frees memory',
    file: 'pager/index.ts',
    from: '  emit(PagerAction.PUNCH, slot.block);\n  if (slot.list == List.MAIN',
    to: '  if (slot.list == List.MAIN',
    test: 'pager/worlds',
  },
  {
    breaks: 'what is pinned is not evicted to make room',
    file: 'pager/index.ts',
    from: 'if (slot.pins > 0 || slot.state == State.WRITING) {',
    to: 'if (slot.state == State.WRITING) {',
    test: 'pager/worlds',
  },
  {
    breaks: 'a thread that waits for a block is woken when it has arrived',
    file: 'pager/index.ts',
    from: '      slot.flags |= Flag.AWAITED | (write ? Flag.WRITE_AWAITED : 0);\n      request(slot.request).urgent = 1;',
    to: '      request(slot.request).urgent = 1;',
    test: 'pager/worlds',
  },
  {
    breaks: 'a failed request is made again',
    file: 'pager/index.ts',
    from: 'one.due <= now) one.phase = Phase.QUEUED;',
    to: 'one.due <= now) one.due = now + 1000;',
    test: 'pager/worlds',
  },
  {
    breaks: 'what was removed never comes from a source',
    file: 'source-fills.ts',
    from: 'if (state != PAGE_REMOVED || source.kind == SourceKind.DATA) return false;\n  content = Content.REMOVED;\n',
    to: '',
    test: 'core/sources',
  },
  {
    breaks: 'what was removed is zeros if its source says so',
    file: 'source-fills.ts',
    from: '  content = Content.REMOVED;\n  return true;',
    to: '  return true;',
    test: 'core/sources',
  },
  {
    breaks:
      'a page that is missing without a report is not answered from its source, if removals are not reported',
    file: 'source-fills.ts',
    from: 'if (state == PAGE_PRESENT) return queueReportsRemovals();',
    to: 'if (state == PAGE_PRESENT) return true;',
    test: 'core/sources',
  },
  {
    breaks: 'huge pages have no zero page',
    file: 'source-fills.ts',
    from: 'if (content != Content.DATA && size > pageSystem()) return Step.ASK;',
    to: '',
    test: 'core/huge-pages',
  },
  {
    breaks: 'a source ends with the registration of its memory',
    file: 'queue.ts',
    from: '  faultDrop(start, end);\n  sourcesForget(start, end);\n',
    to: '  faultDrop(start, end);\n',
    test: 'core/sources',
  },
  {
    breaks: 'EEXIST wakes the page',
    file: 'transfer.ts',
    from: 'options & Option.DONTWAKE ? passOver() : wake(cursor, cursor + pageSizeAt(cursor), PHASE_STEP_OVER)',
    to: 'passOver()',
    test: 'core/transfer',
  },
  {
    breaks: '−11 in the result field is no progress',
    file: 'transfer.ts',
    from: 'done > 0 && <u64>done <= stop - cursor',
    to: 'done != 0',
    test: 'core/transfer',
  },
  {
    breaks: 'changes come before faults',
    file: 'session.ts',
    from: '  if (queueChanges() > 0) return deliverChange();\n  if (shared()',
    to: '  if (queueChanges() > 0 && faultCount() == 0) return deliverChange();\n  if (shared()',
    test: 'core/queue',
  },
  {
    breaks: 'a read that finds no descriptor for a child is no failure',
    file: 'queue.ts',
    from: '  if (errno == EMFILE || errno == ENFILE) return Verdict.STARVED;\n',
    to: '',
    test: 'core/queue',
  },
  {
    breaks: 'no fault is delivered before the queue was read to EAGAIN',
    file: 'session.ts',
    from: '  if (!queueDrained()) return read',
    to: '  if (!queueDrained() && faultCount() == 0) return read',
    test: 'core/queue',
  },
  {
    breaks: 'progress is what the kernel says, and no page more',
    file: 'transfer.ts',
    from: 'return resolved(<u64>done);',
    to: 'return resolved(<u64>done + pageSizeAt(cursor));',
    test: 'core/transfer',
  },
  {
    breaks: 'EAGAIN without progress reads before it tries again',
    file: 'transfer.ts',
    from: '    takenBefore = queueTaken();\n    return Step.READ;',
    to: '    return again();',
    test: 'core/transfer',
  },
  {
    breaks: 'a change that touches the rest ends the transfer short',
    file: 'transfer.ts',
    from: '  if (queueOverlaps(cursor, end)) return true;',
    to: '',
    test: 'core/transfer',
  },
  {
    breaks: 'reads that bring nothing end the transfer short',
    file: 'transfer.ts',
    from: 'const FRUITLESS_READS: u32 = 2;',
    to: 'const FRUITLESS_READS: u32 = 1000000;',
    test: 'core/transfer',
  },
  {
    breaks: 'ENOENT wakes the threads that wait for the page',
    file: 'transfer.ts',
    from: 'return wake(options & Option.DONTWAKE ? resumed : cursor, cursor + size, PHASE_GONE);',
    to: 'return passGone();',
    test: 'core/transfer',
  },
  {
    breaks: 'a write upgrades a read',
    file: 'faults.ts',
    from: '    entry(known).write |= write;',
    to: '',
    test: 'core/queue',
  },
  {
    breaks: 'a deferred fault comes again by itself',
    file: 'faults.ts',
    from: 'entry(index).due <= now; index = head(level)',
    to: 'entry(index).due < 0; index = head(level)',
    test: 'core/',
  },
  {
    breaks: 'a fault whose fill was cut short is delivered again',
    file: 'faults.ts',
    from: '(!resolved || cutShort)',
    to: '!resolved',
    test: 'core/deferral',
  },
  {
    breaks: 'threads that were left asleep are woken',
    file: 'session.ts',
    from: 'prepareWake(batchStart(), batchEnd());',
    to: 'prepareWake(batchStart(), batchStart() + (batchEnd() - batchStart()) / 2);',
    test: 'core/batch',
  },
  {
    breaks: 'a thread that faults in what was installed for others is no question',
    file: 'session.ts',
    from: 'if (!batchHas(current())) return answer();',
    to: 'return answer();',
    test: 'core/batch',
  },
  {
    breaks: 'the waiters of a place that pages have left are woken before the change is delivered',
    file: 'session.ts',
    from: '  wakes = wakesOf(change);\n  return wakeGone();',
    to: '  wakes = 0;\n  return wakeGone();',
    test: 'core/queue.',
  },
  {
    breaks: 'the waiters whose faults were not answered are woken at the end',
    file: 'session.ts',
    from: '  if (!currentOpen() && !faultTake(f64.POSITIVE_INFINITY)) return',
    to: '  if (!currentOpen() || !faultTake(f64.POSITIVE_INFINITY)) return',
    test: 'core/deferral',
  },
  // ---- mappings that are not known
  {
    breaks: 'ENOENT on several pages is tried with half of them',
    file: 'transfer.ts',
    from: 'return fillTo(cursor + (pages >> 1) * size);',
    to: 'return fillTo(cursor + size);',
    test: 'core/transfer.test',
  },
  {
    breaks: 'ENOENT says that a page is gone only if the call was about it alone',
    file: 'transfer.ts',
    from: '  if (pages > 1) {',
    to: '  if (pages > 2) {',
    test: 'core/transfer.test',
  },
  {
    breaks: 'behind a border the rest is tried as far as the call that failed, not further',
    file: 'transfer.ts',
    from: 'min(crossed ? crossed : end, borderAfter(cursor))',
    to: 'min(end, borderAfter(cursor))',
    test: 'core/transfer.test',
  },
  {
    breaks: 'a border that was found is remembered',
    file: 'transfer.ts',
    from: '  borderPut(cursor);\n  crossed = 0;',
    to: '  crossed = 0;',
    test: 'core/transfer.test',
  },
  {
    breaks: 'a border behind a page that was stepped over is found as well',
    file: 'transfer.ts',
    from: '  edge = crossed ? to : 0;\n  source += to - cursor;',
    to: '  source += to - cursor;',
    test: 'core/transfer.test',
  },
  {
    breaks: 'a fill stops at a border that is known',
    file: 'transfer.ts',
    from: 'min(crossed ? crossed : end, borderAfter(cursor))',
    to: '(crossed ? crossed : end)',
    test: 'core/transfer.test',
  },
  {
    breaks: 'a window stops at the border in front of it',
    file: 'pages.ts',
    from: 'max(range.start, borderBefore(windowFirst))',
    to: 'range.start',
    test: 'core/transfer.test',
  },
  {
    breaks: 'a window stops at the border behind it',
    file: 'pages.ts',
    from: 'min(range.end, borderAfter(windowFirst))',
    to: 'range.end',
    test: 'core/transfer.test',
  },
  {
    breaks: 'two ranges are two calls, whatever their pages',
    file: 'transfer.ts',
    from: 'return fillTo(range ? min(to, range.end) : to);',
    to: 'return fillTo(to);',
    test: 'core/transfer.test',
  },
  {
    breaks: 'behind a page that is gone it goes on with the page that is asked for',
    file: 'transfer.ts',
    from: 'const next = operation == Operation.MOVE ? end : currentPage(cursor + size, end);',
    to: 'const next = end;',
    test: 'core/transfer.test',
  },
  {
    breaks: 'what was passed over is not done',
    file: 'transfer.ts',
    from: '  passed += next - cursor;\n',
    to: '',
    test: 'core/transfer.test',
  },
  {
    breaks: 'the data of what was passed over is passed over',
    file: 'transfer.ts',
    from: '  source += next - cursor;\n  cursor = resumed',
    to: '  cursor = resumed',
    test: 'core/transfer.test',
  },
  {
    breaks: 'threads that were left asleep in front of a page that is gone are woken with it',
    file: 'transfer.ts',
    from: 'wake(options & Option.DONTWAKE ? resumed : cursor, cursor + size, PHASE_GONE)',
    to: 'wake(cursor, cursor + size, PHASE_GONE)',
    test: 'core/transfer.test',
  },
  {
    breaks: 'borders go with their memory',
    file: 'queue.ts',
    from: '  bordersForget(start, end);\n',
    to: '',
    test: 'core/transfer.test',
  },
  {
    breaks: 'borders go with their memory alone',
    file: 'borders.ts',
    from: 'const last = seek(end - 1);',
    to: 'const last = count;',
    test: 'core/transfer.test',
  },
  {
    breaks: 'a call that was interrupted stays as narrow as it was',
    file: 'transfer.ts',
    from: 'phase == PHASE_FILL ? fillTo(stop) : Step.CALL',
    to: 'phase == PHASE_FILL ? fill() : Step.CALL',
    test: 'core/transfer.test',
  },
  // ---- EEXIST
  {
    breaks: 'EEXIST notes nothing',
    file: 'transfer.ts',
    from: 'if (pageState(cursor) == PAGE_IN_FLIGHT) pagesSet(cursor, to, PAGE_MISSING);',
    to: 'pagesSet(cursor, to, PAGE_PRESENT);',
    test: 'core/pages',
  },
  {
    breaks: 'EEXIST forgets no removal',
    file: 'transfer.ts',
    from: 'if (pageState(cursor) == PAGE_IN_FLIGHT) pagesSet(cursor, to, PAGE_MISSING);',
    to: 'pagesSet(cursor, to, PAGE_MISSING);',
    test: 'core/pages',
  },
  {
    breaks: 'a claim is over when its fill says EEXIST',
    file: 'transfer.ts',
    from: 'if (pageState(cursor) == PAGE_IN_FLIGHT) pagesSet(cursor, to, PAGE_MISSING);',
    to: '',
    test: 'core/pages',
  },
  {
    breaks: 'a fault behind EEXIST waits',
    file: 'session.ts',
    from: '    faultWait(now, tries);\n',
    to: '    faultWait(now - 1000, tries);\n',
    test: 'core/doubts',
  },
  {
    breaks: 'it waits once',
    file: 'session.ts',
    from: 'if (tries == 0 || fault.waited) break;',
    to: 'if (tries == 0) break;',
    test: 'core/doubts',
  },
  {
    breaks: 'it waits longer each time',
    file: 'faults.ts',
    from: '  fault.level = max(fault.level, min(tries, LEVELS) - 1);\n',
    to: '',
    test: 'core/doubts',
  },
  {
    breaks: 'only a missing page is in doubt',
    file: 'session.ts',
    from: 'current().kind == KIND_MISSING ? doubtTries(current().page) : 0',
    to: 'doubtTries(current().page)',
    test: 'core/doubts',
  },
  {
    breaks: 'many pages can be in doubt at once',
    file: 'doubts.ts',
    from: 'const PLACES: u32 = 16;',
    to: 'const PLACES: u32 = 1;',
    test: 'core/doubts',
  },
  {
    breaks: 'a fill that succeeds ends the doubt',
    file: 'transfer.ts',
    from: '    doubtsForget(cursor, to);\n',
    to: '',
    test: 'core/doubts',
  },
  {
    breaks: 'a removal ends the doubt',
    file: 'queue.ts',
    from: '    pagesSet(it.start, it.end, PAGE_REMOVED);\n    doubtsForget(it.start, it.end);\n',
    to: '    pagesSet(it.start, it.end, PAGE_REMOVED);\n',
    test: 'core/doubts',
  },
  {
    breaks: 'a fault whose copy did not help is left to the handler',
    file: 'source-fills.ts',
    from: ' || doubtTries(page) > 0',
    to: '',
    test: 'core/sources',
  },
  // ---- what was removed
  {
    breaks: 'a removal is remembered through fills',
    file: 'pages.ts',
    from: '      if (state == PAGE_REMOVED) chunk.removed',
    to: '      if (state == PAGE_PRESENT) chunk.removed = setBits(chunk.removed, from, count, 0);\n      if (state == PAGE_REMOVED) chunk.removed',
    test: 'core/pages',
  },
  {
    breaks: 'only what was ever removed is removed when it is missing again',
    file: 'session.ts',
    from: 'pageState(page) == PAGE_PRESENT && pageWasRemoved(page)',
    to: 'pageState(page) == PAGE_PRESENT',
    test: 'core/pages',
  },
  {
    breaks: 'a minor fault of a page that was removed and filled since is one of a removed page',
    file: 'session.ts',
    from: 'fault.kind != KIND_WRITE_PROTECT && pageState(page)',
    to: 'fault.kind == KIND_MISSING && pageState(page)',
    test: 'core/pages',
  },
  {
    breaks: 'unregistering keeps what was removed',
    file: 'index.ts',
    from: '  pagesLeave(from, to);',
    to: '  pagesForget(from, to);',
    test: 'core/pages',
  },
  {
    breaks: 'an unmapping forgets what was removed',
    file: 'queue.ts',
    from: '  pagesForget(start, end);\n',
    to: '',
    test: 'core/pages',
  },
  {
    breaks: 'bitmaps are given back with the range',
    file: 'pages.ts',
    from: 'if (chunk.removed && !isBlank(chunk.removed)) continue;',
    to: 'if (chunk.removed) continue;',
    test: 'core/pages',
  },
  {
    breaks: 'mremap forgets what was at its target',
    file: 'queue.ts',
    from: '  if (!forgetMemory(to, to + length)) return false;\n',
    to: '',
    test: 'core/pages',
  },
  {
    breaks: 'the place that mremap has left is empty',
    file: 'pages.ts',
    from: '  pagesSet(from, from + length, PAGE_REMOVED);',
    to: '  pagesSet(from, from + length, PAGE_MISSING);',
    test: 'core/pages',
  },
  {
    breaks: 'mremap carries along what was removed and filled',
    file: 'pages.ts',
    from: '    if (pageWasRemoved(from + offset)) pagesSet(target, target + size, PAGE_REMOVED);\n',
    to: '    if (pageState(from + offset) == PAGE_REMOVED) pagesSet(target, target + size, PAGE_REMOVED);\n',
    test: 'core/pages',
  },
  {
    breaks: 'what was removed travels',
    file: 'pages.ts',
    from: '  savePlane(8, chunk.removed);',
    to: '  savePlane(8, 0);',
    test: 'core/snapshots',
  },
  {
    breaks: 'what travels is known of registered pages only',
    file: 'pages.ts',
    from: '  blank(from, end);\n',
    to: '',
    test: 'core/snapshots',
  },
  // ---- write protection
  {
    breaks: 'a fill keeps protection',
    file: 'transfer.ts',
    from: '!protects && pagesProtectAny()',
    to: 'false',
    test: 'core/protection',
  },
  {
    breaks: 'a call is cut where protection changes',
    file: 'transfer.ts',
    from: '  stop = min(stop, to);\n',
    to: '',
    test: 'core/protection',
  },
  {
    breaks: 'protection is looked at once a page',
    file: 'transfer.ts',
    from: 'let to = max(alike, cursor + size);',
    to: 'let to = cursor + size;',
    test: 'core/protection',
  },
  {
    breaks: 'zeros are copied to a protected page',
    file: 'transfer.ts',
    from: '    substitutes = size == pageSystem();',
    to: '    substitutes = false;',
    test: 'core/protection',
  },
  {
    breaks: 'zeros of a small page are not copied to a huge one',
    file: 'transfer.ts',
    from: '    substitutes = size == pageSystem();',
    to: '    substitutes = true;',
    test: 'core/huge-pages',
  },
  {
    breaks: 'POISON lifts a marker in its way',
    file: 'transfer.ts',
    from: '    operation == Operation.POISON &&\n',
    to: '    operation > <u32>Operation.WRITEPROTECT &&\n',
    test: 'core/protection',
  },
  {
    breaks: 'POISON lifts no protection of a page that is there',
    file: 'transfer.ts',
    from: ' &&\n    pageState(cursor) != PAGE_PRESENT\n',
    to: '\n',
    test: 'core/protection',
  },
  {
    breaks: 'a page whose protection was lifted for a POISON that fails is protected again',
    file: 'transfer.ts',
    from: 'return lifted == cursor ? writeProtect(true, PHASE_PROTECT) : stepOver();',
    to: 'return stepOver();',
    test: 'core/protection',
  },
  // ---- threads that are left asleep
  {
    breaks: 'a WAKE that was interrupted is made again',
    file: 'session.ts',
    from: '  if (result == -EINTR) return Action.IOCTL;\n',
    to: '',
    test: 'core/batch',
  },
  {
    breaks: 'a thread that faults in front of what was installed for others is not woken with them',
    file: 'batch.ts',
    from: 'page >= heldStart && ',
    to: '',
    test: 'core/batch',
  },
  {
    breaks: 'a thread that faults behind what was installed for others is not woken with them',
    file: 'batch.ts',
    from: ' && page < heldEnd',
    to: '',
    test: 'core/batch',
  },
  {
    breaks: 'a write-protect fault is a question, also there',
    file: 'batch.ts',
    from: ' && fault.kind == KIND_MISSING && pageState(page)',
    to: ' && pageState(page)',
    test: 'core/batch',
  },
  {
    breaks: 'a fault of what is missing there is a question',
    file: 'batch.ts',
    from: ' && pageState(page) == PAGE_PRESENT',
    to: '',
    test: 'core/batch',
  },
  {
    breaks: 'a huge page is woken whole when the descriptor goes',
    file: 'session.ts',
    from: '  prepareWake(page, page + pageSizeAt(page));\n  return give(State.RELEASING',
    to: '  prepareWake(page, page + 4096);\n  return give(State.RELEASING',
    test: 'core/huge-pages',
  },
];

/** The core as it is: unless it passes, noticing a mutant means nothing. */
const CONTROL: Mutant = {
  breaks: 'nothing',
  file: 'index.ts',
  from: '// What the module exports',
  to: '// What the module exports',
  test: 'core/',
};

const root = fileURLToPath(new URL('../..', import.meta.url));
const execute = promisify(execFile);
/** Mutants that are built and tested at a time. */
const AT_A_TIME = 2;
const survivors: string[] = [];

if (await isNoticed(CONTROL)) throw new Error('the tests fail on the core as it is');

const left = [...MUTANTS];
await Promise.all(Array.from({ length: AT_A_TIME }, lookAtAll));
console.log(`${MUTANTS.length - survivors.length} of ${MUTANTS.length} broken cores were noticed`);
process.exitCode = survivors.length > 0 ? 1 : 0;

async function lookAtAll(): Promise<void> {
  for (let mutant = left.shift(); mutant; mutant = left.shift()) {
    const noticed = await isNoticed(mutant);
    console.log(`${noticed ? 'noticed ' : 'SURVIVED'}  ${mutant.breaks}`);
    if (!noticed) survivors.push(mutant.breaks);
  }
}

async function isNoticed({ breaks, file, from, to, test }: Mutant): Promise<boolean> {
  const folder = mkdtempSync(join(tmpdir(), 'uffd-mutant-'));
  try {
    for (const part of [
      'assembly',
      'asconfig.json',
      'package.json',
      'build/core',
      'build/src',
      'build/shim',
      'build/package.json',
    ]) {
      cpSync(join(root, part), join(folder, part), { recursive: true });
    }
    for (const part of ['core', 'pager', 'support', 'run.js']) {
      cpSync(join(root, 'build/test', part), join(folder, 'build/test', part), { recursive: true });
    }
    symlinkSync(join(root, 'node_modules'), join(folder, 'node_modules'));
    const path = join(folder, 'assembly', file);
    const source = readFileSync(path, 'utf8');
    if (source.split(from).length !== 2)
      throw new Error(`'${breaks}': its place in ${file} is not there once`);
    writeFileSync(path, source.replace(from, to));
    // The release builds alone: the others are not run here.
    const [target, main] = file.startsWith('pager/') ? ['pager', 'pager/index'] : ['release', 'index'];
    const { error, stderr } = await asc.main([
      ...[`assembly/${main}.ts`, '--target', target, '--baseDir', folder],
    ]);
    if (error) throw new Error(`'${breaks}': ${stderr}`);
    inline([join(folder, `build/core/${target}.wasm`)], join(folder, 'build/core'));
    const env = { UFFD_SEEDS: '20', ...process.env, UFFD_CORE: 'release' };
    return await execute(process.execPath, ['build/test/run.js', '--bail', test], { cwd: folder, env }).then(
      () => false,
      ({ stdout }) => {
        // Only the tests of the core are copied.
        if (/^no test ran$/m.test(stdout)) throw new Error(`'${breaks}': no test is called ${test}`);
        return true;
      },
    );
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
