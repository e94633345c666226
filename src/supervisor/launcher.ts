// Starts handlers whose system calls are trapped, receives these calls, and sends the answers. Everything here blocks,
// so it runs in a thread of its own.
//
// Rules:
//  - One launcher starts many handlers, one after the other, because setting the filter through Node takes 80 ms.
//  - The shell and its handlers are one process group. It ends with the supervisor: if the shell's input is closed, the
//    group is killed, whatever the handler is doing.

import type { ChildProcess } from 'node:child_process';
import { readSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { closeDescriptor } from '../../shim/descriptors.js';
import { makePipe, NotificationChannel, Readiness, wakeOnSameProcessor } from '../../shim/seccomp.js';
import { receive, send, socketPair } from '../../shim/socket.js';
import { UffdError, UnsupportedError } from '../errors/errors.js';
import { ENTRY } from '../workers/entry-file.js';
import { startProcess } from '../workers/launcher.js';
import type { LauncherOrder, LauncherReport } from './launcher-process.js';

export interface LauncherOptions {
  /** The handler and its arguments, with the placeholders {socket} and {memory}. */
  readonly command: readonly string[];
  /** A folder for the socket and the handler's output; the caller makes and removes it. */
  readonly folder: string;
  /** The memory files between which a start chooses. */
  readonly memories: readonly string[];
  /** Which calls are trapped. Default: those that a simulated kernel answers. */
  readonly calls?: LauncherOrder['calls'];
  /** Whether the handler's output goes where this process's output goes, instead of files. Default false. */
  readonly inherits?: boolean;
  /** Whether to switch to the handler at once with an answer, if the kernel can (Linux 6.6). Default true. */
  readonly syncWakeUp?: boolean;
}

/**
 * What happened next: a call was trapped, the handler has ended, a watched descriptor is readable, or nothing of it
 * within the time limit.
 */
export type Happened = 'call' | 'ended' | 'ready' | 'nothing';

/** How long the launcher and the connector may take. */
const START_MS = 20_000;
const CONNECT_MS = 5000;
/** SECCOMP_USER_NOTIF_FLAG_CONTINUE. */
const CONTINUE = 1;
const CALL = 1;
const OUTPUT = 2;
/** Where the shell has this process's standard output and error, if the handler inherits them. */
const INHERITED = [6, 7] as const;
const NOT_FOUND = 127;
const NOT_EXECUTABLE = 126;

function quoted(word: string): string {
  return `'${word.replaceAll("'", "'\\''")}'`;
}

export class Launcher {
  /** Where the handler listens, and where its standard output and error go. */
  readonly socket: string;
  readonly output: string;
  readonly errors: string;
  readonly channel: NotificationChannel;
  /** What this machine can do: it decides the speed, and how well a run repeats. */
  readonly abilities: { readonly killable: boolean; readonly fixed: boolean; readonly syncWakeUp: boolean };
  /** The handler's exit status, as a shell has it: 128 and the signal, if a signal has killed it. */
  status: number | undefined;
  /** The process of the handler that was started last. */
  pid = 0;
  readonly #options: LauncherOptions;
  readonly #shell: ChildProcess;
  readonly #listener: number;
  readonly #input: number;
  readonly #life: number;
  readonly #outputOfShell: number;
  #readiness: Readiness;
  #connector: Connector | undefined;
  #text = '';
  #closed = false;

  /** @throws UffdError, UnsupportedError if calls cannot be trapped here */
  constructor(options: LauncherOptions) {
    this.#options = options;
    const { folder } = options;
    [this.socket, this.output, this.errors] = [
      join(folder, 'socket'),
      join(folder, 'output'),
      join(folder, 'errors'),
    ];
    const [childInput, input] = makePipe(true);
    const [outputOfShell, childOutput] = makePipe(true);
    const [childLife, life] = makePipe(true);
    const [channel, childChannel] = socketPair();
    const { calls = 'simulated', inherits = false } = options;
    const order: LauncherOrder = { script: this.#script(), calls, inherits: inherits ? INHERITED : [] };
    if (calls === 'simulated') this.#connector = new Connector(this.socket);
    this.#shell = startProcess(
      'launcher',
      [JSON.stringify(order)],
      {
        stdio: [
          ...([childInput, childOutput, 'inherit', 'ipc', childChannel, childLife] as const),
          ...(inherits ? [1, 2] : []),
        ],
        execArgv: [],
        detached: true,
      },
      ENTRY,
    );
    this.#shell.unref();
    this.#shell.channel?.unref();
    for (const fd of [childInput, childOutput, childChannel, childLife]) closeDescriptor(fd);
    this.#input = input;
    this.#life = life;
    this.#outputOfShell = outputOfShell;
    const { report, listener } = this.#reported(channel);
    closeDescriptor(channel);
    this.#listener = listener;
    this.channel = new NotificationChannel(listener);
    const syncWakeUp = options.syncWakeUp !== false && wakeOnSameProcessor(listener) >= 0;
    this.abilities = { killable: report.killable, fixed: report.fixed, syncWakeUp };
    this.#readiness = new Readiness([listener, outputOfShell]);
  }

  /**
   * For each line of its input the shell starts a handler, whose memory file the line names by its index. It prints the
   * handler's PID, waits for its end, and prints its status. A process beside it kills the group when the supervisor is
   * gone: then nothing holds the other end of descriptor 5 any more.
   */
  #script(): string {
    const { command, memories, inherits } = this.#options;
    const [output, errors] = INHERITED;
    const streams = inherits
      ? `>&${output} 2>&${errors} ${output}>&- ${errors}>&-`
      : `>${quoted(this.output)} 2>${quoted(this.errors)}`;
    const starts = memories.map((memory, index) => {
      const words = command.map((word) =>
        quoted(word.replaceAll('{socket}', this.socket).replaceAll('{memory}', memory)),
      );
      return `${index}) ${words.join(' ')} ${streams} 3<&- 5<&- & ;;`;
    });
    return [
      'exec 3<&0 </dev/null 2>/dev/null',
      '(read -r n <&5; kill -9 0) 3<&- &',
      'while read -r n <&3; do',
      `case $n in ${starts.join('\n')} esac`,
      'p=$!; echo "+$p"; wait $p; echo "=$?"',
      'done',
      'kill -9 0',
    ].join('\n');
  }

  #reported(channel: number): { report: LauncherReport; listener: number } {
    const bytes = new Uint8Array(4096);
    const there = new Readiness([channel]).wait(START_MS) > 0;
    const { result, fds } = there ? receive(channel, bytes) : { result: 0, fds: [] };
    const [listener] = fds;
    if (result <= 0)
      throw new UnsupportedError('the launcher of handlers has ended before it could set a filter');
    const report = JSON.parse(Buffer.from(bytes.subarray(0, result)).toString()) as LauncherReport;
    if (listener === undefined) throw new UffdError(report.listener, report.failed ?? 'seccomp');
    return { report, listener };
  }

  /** Starts a handler. The one before must have ended. `memory`: index of its memory file. */
  start(memory: number): void {
    rmSync(this.socket, { force: true });
    this.status = undefined;
    this.pid = 0;
    writeSync(this.#input, `${memory}\n`);
  }

  /** Also waits for these descriptors from now on. */
  watch(fds: readonly number[]): void {
    this.#readiness = new Readiness([this.#listener, this.#outputOfShell, ...fds]);
  }

  /** Waits for the next event. */
  wait(timeoutMs: number): Happened {
    const ready = this.#readiness.wait(timeoutMs);
    // Calls first: they were made before the end.
    if (ready & CALL && this.channel.receive() === 0) return 'call';
    if (ready & OUTPUT) {
      this.#listen();
      if (this.status !== undefined) return 'ended';
    }
    return ready > (CALL | OUTPUT) ? 'ready' : 'nothing';
  }

  /** Gives the handler a moment to do what it does without calls. */
  pause(): void {
    this.#readiness.wait(1);
  }

  /** Reads what the shell has printed. */
  #listen(): void {
    const bytes = Buffer.alloc(256);
    const read = readSync(this.#outputOfShell, bytes);
    if (read === 0) throw new UnsupportedError('the shell that starts handlers has ended');
    this.#text += bytes.toString('latin1', 0, read);
    const lines = this.#text.split('\n');
    this.#text = lines.pop() ?? '';
    for (const line of lines) {
      if (line.startsWith('+')) this.pid = Number(line.slice(1));
      else if (line.startsWith('=')) this.status = Number(line.slice(1));
    }
  }

  /** Whether the command could not be executed at all. */
  get notStarted(): boolean {
    return this.status === NOT_FOUND || this.status === NOT_EXECUTABLE;
  }

  /** Connects to the handler, from an expendable process. −errno. Undefined: the handler has killed that process. */
  connect(): number | undefined {
    this.#connector ??= new Connector(this.socket);
    const connection = this.#connector.connect();
    if (connection === undefined) {
      this.#connector.close();
      this.#connector = undefined;
    }
    return connection;
  }

  /** The process that connects. */
  get connectorPid(): number | undefined {
    return this.#connector?.pid;
  }

  /** The process group of the shell and its handlers. */
  get group(): number {
    return this.#shell.pid ?? 0;
  }

  /** Asks the handler to end (SIGTERM). */
  terminate(): void {
    if (this.pid > 0 && this.status === undefined) signal(this.pid, 'SIGTERM');
  }

  /** Kills the handler, and waits for its end. Trapped calls of other processes of its group are let through. */
  kill(): void {
    for (let killed = 0; this.status === undefined; ) {
      // The PID may not be known yet.
      if (this.pid > 0 && this.pid !== killed) {
        killed = this.pid;
        signal(this.pid);
      }
      if (this.wait(1000) === 'call') this.letThrough();
    }
  }

  /** Answers a call with a result: ≥ 0, or −errno. `id`: that of a call; default: the one that was received last. */
  reply(result: number, id?: bigint): void {
    this.#answer(id, result, 0);
  }

  /** Lets the kernel carry a call out: the one that was received last, or that of an `id`. */
  letThrough(id?: bigint): void {
    this.#answer(id, 0, CONTINUE);
  }

  #answer(id: bigint | undefined, result: number, flags: number): void {
    const { notification, answer } = this.channel;
    if (id === undefined) {
      answer.setUint32(0, notification.getUint32(0, true), true);
      answer.setUint32(4, notification.getUint32(4, true), true);
    } else answer.setBigUint64(0, id, true);
    const value = Math.max(result, 0);
    answer.setUint32(8, value >>> 0, true);
    answer.setUint32(12, Math.floor(value / 2 ** 32), true);
    answer.setInt32(16, Math.min(result, 0), true);
    answer.setUint32(20, flags, true);
    this.channel.send();
  }

  /** Kills the shell and all its handlers. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#shell.pid !== undefined) signal(-this.#shell.pid);
    this.#connector?.close();
    for (const fd of [this.#input, this.#life, this.#outputOfShell, this.#listener]) closeDescriptor(fd);
  }
}

function signal(pid: number, name: 'SIGKILL' | 'SIGTERM' = 'SIGKILL'): void {
  try {
    process.kill(pid, name);
  } catch {
    // It has ended.
  }
}

/** The process that connects to handlers. */
class Connector {
  readonly #channel: number;
  readonly #process: ChildProcess;
  readonly #readiness: Readiness;

  constructor(path: string) {
    const [channel, childChannel] = socketPair();
    const stdio = ['ignore', 'ignore', 'inherit', 'ipc', childChannel] as const;
    this.#process = startProcess('connector', [path], { stdio: [...stdio], execArgv: [] }, ENTRY);
    this.#process.unref();
    this.#process.channel?.unref();
    closeDescriptor(childChannel);
    this.#channel = channel;
    this.#readiness = new Readiness([channel]);
  }

  get pid(): number | undefined {
    return this.#process.pid;
  }

  connect(): number | undefined {
    if (send(this.#channel, new Uint8Array(1)) < 0) return undefined;
    if (this.#readiness.wait(CONNECT_MS) <= 0) return undefined;
    const answer = new Int32Array(1);
    const { result, fds } = receive(this.#channel, new Uint8Array(answer.buffer));
    if (result < answer.byteLength) return undefined;
    return fds[0] ?? answer[0];
  }

  close(): void {
    this.#process.kill('SIGKILL');
    closeDescriptor(this.#channel);
  }
}
