// The types of every entry: what calls return, accept and refuse. Nothing here runs; the compiler is the test, on the
// sources (`npm run check`) and on the published declarations (snippets.once.test.ts).

import { expectTypeOf } from 'expect-type';
import {
  type FaultHandler,
  type Feature,
  type Kernel,
  Mapping,
  type Mode,
  type Operation,
  type Pagefault,
  type PageState,
  type Placement,
  type Probe,
  type RegisteredRange,
  type SharedMapping,
  type SyncFaultHandler,
  type UffdError,
  type UnsupportedError,
  Userfaultfd,
  type Wait,
  type Window,
} from 'userfaultfd';
import { type Core, decodeMessages, instantiate, type Message } from 'userfaultfd/core';
import { type Checkpoint, type DirtyRun, DirtyTracker } from 'userfaultfd/dirty';
import { embed, koffiFile, startProcess, startThread } from 'userfaultfd/embed';
import { handOver, type Server, type Session, type SessionEnd, serve, type Vm } from 'userfaultfd/serve';
import * as sim from 'userfaultfd/sim';
import {
  answerFromSource,
  type Explored,
  explore,
  type Invariant,
  type SimulationError,
  simulate,
  type World,
} from 'userfaultfd/testing';
import {
  perfettoJson,
  type ReplayResult,
  replay,
  summarize,
  TraceReader,
  type TraceSummary,
  TraceWriter,
} from 'userfaultfd/trace';

declare const uffd: Userfaultfd;
declare const planted: () => never;
declare const kernel: sim.SimulatedKernel;

// ---- userfaultfd -------------------------------------------------------------------------------------------

expectTypeOf(Userfaultfd.open).returns.toEqualTypeOf<Userfaultfd>();
expectTypeOf(Userfaultfd.probe()).toEqualTypeOf<Probe>();
expectTypeOf(uffd).toExtend<Disposable>();
expectTypeOf(uffd.features).toEqualTypeOf<ReadonlySet<Feature>>();
expectTypeOf(uffd.ranges).toEqualTypeOf<readonly RegisteredRange[]>();
expectTypeOf(uffd.register(0n, 4096)).toEqualTypeOf<ReadonlySet<Operation>>();
expectTypeOf(uffd.copy(0n, new Uint8Array(1))).toEqualTypeOf<number>();
expectTypeOf(uffd.pageState(0n)).toEqualTypeOf<PageState>();
expectTypeOf(uffd.fillAhead(0n, 1)).toEqualTypeOf<
  { readonly passed: number; readonly installed: number; readonly leftOut: number } | undefined
>();
expectTypeOf(uffd.release()).toEqualTypeOf<number>();
expectTypeOf<PageState>().toEqualTypeOf<'missing' | 'present' | 'removed' | 'in-flight'>();
expectTypeOf<Mode>().toEqualTypeOf<'missing' | 'write-protect' | 'minor'>();
expectTypeOf<Wait>().toEqualTypeOf<'poll' | 'block' | 'spin' | 'adaptive'>();
expectTypeOf<'event-remove'>().toExtend<Feature>();
expectTypeOf<'bit-17'>().toExtend<Feature>();
expectTypeOf<'event-removed'>().not.toExtend<Feature>();
expectTypeOf<UffdError>().toExtend<Error>();
expectTypeOf<UffdError['errno']>().toEqualTypeOf<number>();
expectTypeOf<UnsupportedError>().toExtend<Error>();

Userfaultfd.open({
  features: new Set<Feature>(['move']),
  userModeOnly: 'auto',
  via: 'device',
  pid: 1,
  kernel,
});
Userfaultfd.wrap(3, { ranges: uffd.ranges, features: uffd.features });
uffd.register(0n, 4096, ['missing', 'write-protect'], { pageSize: 2 ** 21 });
uffd.copy(0n, 4096n, 4096, { dontWake: true, writeProtect: true });
uffd.copy(0n, new BigUint64Array(512));
uffd.move(0n, 4096n, 4096, { allowHoles: true });
// @ts-expect-error An unknown feature.
Userfaultfd.open({ features: ['event-removed'] });
// @ts-expect-error Who wants a default leaves it out.
Userfaultfd.open({ pid: undefined });
// @ts-expect-error There is no other way.
Userfaultfd.open({ via: 'ioctl' });
// @ts-expect-error It comes from `open` or `wrap`.
new Userfaultfd();
// @ts-expect-error An address is a bigint.
uffd.register(4096, 4096);
// @ts-expect-error A length is a number.
uffd.register(0n, 4096n);
// @ts-expect-error A kind of fault that there is not.
uffd.register(0n, 4096, 'major');
// @ts-expect-error Bytes, not a list.
uffd.copy(0n, [1, 2, 3]);
// @ts-expect-error A buffer has no place of its own: a view of it.
uffd.copy(0n, new ArrayBuffer(4096));
// @ts-expect-error Zero pages cannot be write-protected by it.
uffd.zero(0n, 4096, { writeProtect: true });
// @ts-expect-error On, or off.
uffd.writeProtect(0n, 4096);
// @ts-expect-error What is on is fixed for life.
uffd.features.add('move');

// Handlers.
expectTypeOf<Pagefault['page']>().toEqualTypeOf<bigint>();
expectTypeOf<Pagefault['access']>().toEqualTypeOf<'read' | 'write'>();
expectTypeOf<FaultHandler['pagefault']>().returns.toEqualTypeOf<boolean | void | Promise<void>>();
expectTypeOf<NonNullable<FaultHandler['forked']>>().parameters.toEqualTypeOf<[Userfaultfd]>();
expectTypeOf<NonNullable<FaultHandler['closed']>>().parameters.toEqualTypeOf<[(UffdError | undefined)?]>();
uffd.start({ pagefault: () => false }, { wait: 'block' });
uffd.start({
  async pagefault() {},
  removed(start, end) {
    expectTypeOf([start, end]).toEqualTypeOf<bigint[]>();
  },
});
declare const either: FaultHandler;
declare const sync: SyncFaultHandler;
uffd.start(either, { wait: 'block' });
uffd.start(sync, { wait: 'spin' });
uffd.start({ pagefault: () => planted() }, { wait: 'block' });
uffd.start({ async pagefault() {} }, { wait: 'poll', onError: () => 'continue' });
expectTypeOf(sync).toExtend<FaultHandler>();
uffd.poll({ async pagefault() {} }, { onError() {} });
// @ts-expect-error Nothing behind an await runs while the thread is held.
uffd.start({ async pagefault() {} }, { wait: 'block' });
// @ts-expect-error The same.
uffd.start({ pagefault: () => Promise.resolve() }, { wait: 'adaptive' });
// @ts-expect-error One that answers later is none that answers at once.
({ async pagefault() {} }) satisfies SyncFaultHandler;
// @ts-expect-error The word is 'continue'.
uffd.start(either, { onError: () => 'go on' });
// @ts-expect-error Who answers later says nothing by it.
uffd.start({ pagefault: async () => false });
// @ts-expect-error Faults have to be answered.
uffd.start({ removed() {} });
// @ts-expect-error A way to wait that there is not.
uffd.start({ pagefault() {} }, { wait: 'sleep' });

// Memory.
const memory = Mapping.anonymous(4096, { pageSize: 2 ** 21, transparentHuge: true });
expectTypeOf(memory).toEqualTypeOf<Mapping>();
expectTypeOf(memory.address).toEqualTypeOf<bigint>();
expectTypeOf(memory.bytes).toExtend<Uint8Array>();
expectTypeOf(memory.share()).toEqualTypeOf<SharedMapping>();
expectTypeOf(Mapping.attach).parameter(0).toEqualTypeOf<SharedMapping>();
Mapping.file('a', { shared: true, writable: false });
// @ts-expect-error Only a file is shared by choice.
Mapping.anonymous(4096, { shared: true });
// @ts-expect-error A length is a number.
Mapping.memfd(4096n);

// ---- userfaultfd/core --------------------------------------------------------------------------------------

expectTypeOf(instantiate()).toEqualTypeOf<Core>();
expectTypeOf(decodeMessages).returns.toExtend<Iterable<Message>>();
expectTypeOf<Extract<Message, { event: 'pagefault' }>['kind']>().toEqualTypeOf<Mode>();

// ---- userfaultfd/dirty -------------------------------------------------------------------------------------

declare const tracker: DirtyTracker;
expectTypeOf(DirtyTracker.open(memory)).resolves.toEqualTypeOf<DirtyTracker>();
expectTypeOf(tracker.collect()).toEqualTypeOf<DirtyRun[]>();
expectTypeOf(tracker.checkpoint('file')).resolves.toEqualTypeOf<Checkpoint>();
expectTypeOf(tracker.mode).toEqualTypeOf<'async' | 'sync'>();
DirtyTracker.open({ address: 0n, length: 4096 }, { mode: 'sync' });
// @ts-expect-error A mapping, or where it lies.
DirtyTracker.open(memory.bytes);

// ---- userfaultfd/serve -------------------------------------------------------------------------------------

expectTypeOf(serve).returns.resolves.toEqualTypeOf<Server>();
declare const server: Server;
server.on('ended', (session, end, vm) => {
  expectTypeOf(session).toEqualTypeOf<Session>();
  expectTypeOf(end).toEqualTypeOf<SessionEnd>();
  expectTypeOf(vm).toEqualTypeOf<Vm>();
  if (end.how === 'failed') expectTypeOf(end.error).toEqualTypeOf<Error>();
});
expectTypeOf(handOver).parameter(2).toEqualTypeOf<number>();
// @ts-expect-error Something has to be served.
serve({});
// @ts-expect-error A socket needs its memory.
serve({ vms: [{ socket: 'vm.sock' }] });

// ---- userfaultfd/sim ---------------------------------------------------------------------------------------

expectTypeOf(kernel).toExtend<Kernel>();
expectTypeOf(sim.Userfaultfd.open({ kernel })).toEqualTypeOf<Userfaultfd>();
function* program(): sim.Program {
  expectTypeOf(yield sim.read(0n)).toEqualTypeOf<sim.Outcome>();
}
expectTypeOf(kernel.thread(program())).toEqualTypeOf<sim.SimulatedThread>();
// @ts-expect-error A page size is a number; one that Linux does not have is refused at run time.
new sim.SimulatedKernel({ pageSize: '4096' });

// ---- userfaultfd/testing -----------------------------------------------------------------------------------

expectTypeOf(explore).returns.resolves.toEqualTypeOf<Explored>();
expectTypeOf(answerFromSource).parameter(0).toEqualTypeOf<World>();
expectTypeOf(answerFromSource).returns.toEqualTypeOf<FaultHandler>();
expectTypeOf<SimulationError['invariant']>().toEqualTypeOf<Invariant>();
simulate({
  handler: (world) => answerFromSource(world),
  choices: [0, 1],
  inject: { eagain: 0.1, enomem: [3] },
});
// @ts-expect-error A handler is made anew for each world.
simulate({ handler: answerFromSource({} as World) });
// @ts-expect-error `explore` has seeds.
explore({ handler: (world) => answerFromSource(world), seed: 1 });
// @ts-expect-error It cannot go wrong like that.
simulate({ handler: (world) => answerFromSource(world), inject: { gremlin: 0.1 } });

// ---- userfaultfd/trace -------------------------------------------------------------------------------------

expectTypeOf(replay).returns.resolves.toEqualTypeOf<ReplayResult>();
expectTypeOf(summarize(TraceReader.of(new Uint8Array()))).toEqualTypeOf<TraceSummary>();
Userfaultfd.open({ record: new TraceWriter({ write() {}, close() {} }, { contents: 'hash' }) });
// @ts-expect-error What is recorded is read again before it is replayed.
replay(TraceWriter.toFile('run.trace'));
// @ts-expect-error All contents, their hashes, or nothing.
TraceWriter.toFile('run.trace', { contents: 'some' });
expectTypeOf(perfettoJson).returns.toEqualTypeOf<Generator<string, void, void>>();

// ---- userfaultfd/embed -------------------------------------------------------------------------------------

expectTypeOf(embed).returns.toEqualTypeOf<boolean>();
expectTypeOf(koffiFile).returns.toEqualTypeOf<string>();
embed({ entry: new URL('tool.mjs', import.meta.url), koffi: new Uint8Array(1), parts: { count: () => 1 } });
embed({ entry: { code: '0' } });
startThread('count', { workerData: 1 }).postMessage(2);
startProcess('guest', ['an argument'], { stdio: 'ignore' }).kill();
// @ts-expect-error A program does not know what its bundle is called.
embed({ koffi: 'koffi.node' });

// ---- where loops run, and what a fault brings --------------------------------------------------------------

expectTypeOf<Placement>().toEqualTypeOf<'auto' | 'none' | 'follow' | 'awake' | readonly number[]>();
expectTypeOf<Window>().toEqualTypeOf<number | 'adaptive'>();
uffd.start({ pagefault() {} }, { wait: 'block', placement: [0, 1] });
uffd.answerFrom(0n, 4096, 0n, { window: 'adaptive' });
// @ts-expect-error There is no such way.
uffd.start({ pagefault() {} }, { placement: 'near' });
