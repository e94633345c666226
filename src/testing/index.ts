// The entry `userfaultfd/testing`: a world to test fault handlers in. It runs wherever WebAssembly runs, under any test
// framework, because failures are ordinary Errors. `checkHandler` and `recordHandler` alone need Linux and Node.

export {
  formatReport,
  formatResult,
  REPORT_FORMATS,
  type ReportFormat,
  summaryOf,
} from '../conformance/report.js';
export {
  type CheckReport,
  countOf,
  type ScenarioResult,
  type Verdict,
  type WrongPage,
} from '../conformance/result.js';
export { type GuestReplay, isOfGuest, replayWithGuest } from '../supervisor/replay-guest.js';
export {
  type CheckHandlerOptions,
  checkHandler,
  handlerScenarios,
  type SimulatedSupport,
  simulatedSupport,
} from './check-handler.js';
export { type Explored, type ExploreOptions, explore } from './explore.js';
export { type Failure, INVARIANTS, type Invariant, type Repeat, SimulationError } from './failure.js';
export { type AnswerOptions, answerFromSource } from './handler.js';
export {
  type HandlerRecording,
  type RecordedTrace,
  type RecordHandlerOptions,
  recordHandler,
} from './record-handler.js';
export { type Simulated, type SimulateOptions, simulate } from './simulate.js';
export { type WorkloadOptions, type WorkloadWorld, workload } from './workload.js';
export type { World, WorldOptions } from './world.js';
