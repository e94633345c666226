// The processes that the supervisor starts, as they run in themselves. The launcher sets the filter and becomes a shell,
// which starts handlers one after the other; they inherit the filter. The connector connects to a handler's socket,
// because some handlers kill the process at the other end of their socket when they fail.

import { closeDescriptor } from '../../shim/descriptors.js';
import { becomeProgram, fixAddresses, forgoPrivileges, Readiness, setFilter } from '../../shim/seccomp.js';
import { connectUnix, receive, send } from '../../shim/socket.js';
import { CALLS, filterProgram } from './system-calls.js';

/** The descriptor through which both processes talk to the supervisor. */
export const CHANNEL = 4;

/** The descriptor whose other end only the supervisor has. */
export const LIFE = 5;

/** What the launcher gets as its argument, in JSON. */
export interface LauncherOrder {
  /** The shell's script. */
  readonly script: string;
  readonly calls: keyof typeof CALLS;
  /** Descriptors that the shell inherits, besides those that every shell has. */
  readonly inherits: readonly number[];
}

/** What the launcher sends with the listener, in JSON, before it becomes a shell. */
export interface LauncherReport {
  /** The descriptor of trapped calls comes with the report. If not: −errno. */
  readonly listener: number;
  /** The call that failed. */
  readonly failed?: string;
  /** Whether waits for an answer are interrupted by fatal signals only. */
  readonly killable: boolean;
  /** Whether addresses are not randomised. */
  readonly fixed: boolean;
}

/** The launcher's process: reports, and becomes the shell. */
export function runLauncher(): void {
  const { script, calls, inherits } = JSON.parse(process.argv[2] ?? '') as LauncherOrder;
  const environment = Object.entries(process.env)
    .filter(([name]) => name !== 'NODE_CHANNEL_FD' && name !== 'NODE_CHANNEL_SERIALIZATION_MODE')
    .map(([name, value]) => `${name}=${value}`);
  const program = filterProgram(CALLS[calls]);
  const report = (about: LauncherReport): void => {
    const fds = about.listener >= 0 ? [about.listener] : [];
    send(CHANNEL, Buffer.from(JSON.stringify(about)), fds);
  };
  const refused = forgoPrivileges();
  if (refused < 0) {
    report({ listener: refused, failed: 'prctl', killable: false, fixed: false });
    process.exit(1);
  }
  const fixed = calls === 'simulated' && fixAddresses() >= 0;
  const { listener, killable } = setFilter(program);
  // From here on this thread makes no call that is trapped: nothing answers it yet.
  report({ listener, killable, fixed, ...(listener < 0 ? { failed: 'seccomp' } : {}) });
  if (listener < 0) process.exit(1);
  becomeProgram('/bin/sh', ['sh', '-c', script], environment, [0, 1, 2, LIFE, ...inherits]);
  process.exit(1);
}

/** The connector's process: for each byte that it receives, it connects and passes the connection on. */
export function runConnector(): void {
  const path = process.argv[2] ?? '';
  const readiness = new Readiness([CHANNEL]);
  const byte = new Uint8Array(1);
  for (;;) {
    readiness.wait(-1);
    const { result } = receive(CHANNEL, byte);
    if (result === 0) process.exit(0);
    if (result < 0) continue;
    const connection = connectUnix(path);
    send(CHANNEL, new Uint8Array(new Int32Array([connection]).buffer), connection >= 0 ? [connection] : []);
    if (connection >= 0) closeDescriptor(connection);
  }
}
