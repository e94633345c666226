// `uffd serve`: its options, its help, and how it ends.

import { type Command, InvalidArgumentError, Option } from 'commander';
import type { Placement, Window } from '../../index.js';
import { type ServeOptions, serve, type Vm } from '../../serve/index.js';
import { integer, PLACEMENT_HELP, placementOption, WAITS, WINDOW_MOST, window } from '../arguments.js';
import { EXIT, Usage } from '../exit.js';
import { onSignals } from '../signals.js';
import { announce, announceStopping } from './announce.js';
import { createDisplay } from './display.js';
import { Ledger } from './ledger.js';
import { serveMetrics } from './metrics.js';
import { checkStats, writeStats } from './stats-file.js';

const MS_MOST = 2 ** 31 - 1;

const HELP = `
How it works:
  A monitor (Firecracker, or one that speaks its protocol) loads a snapshot with
  mem_backend { backend_type: "Uffd", backend_path: PATH }. It connects to PATH
  and hands its guest's memory over. From then on every page that the guest
  touches is copied from FILE, at the moment it is touched. Pages that a balloon
  gave back are zeros. Any number of monitors may connect, one after the other
  or at once; each has a thread of its own.

  --prefetch installs what a recorded run has touched right after the hand-off,
  --eager everything else behind it; whoever touches a page comes first always.

Where the thread that serves a guest runs (the guest's never move):
${PLACEMENT_HELP}

When it is ready:
  A line "ready: PATH" on stdout for each socket. --ready-fd writes the same to
  a descriptor and closes it. Under systemd (Type=notify) READY=1 is sent.

Over HTTP (--metrics):
  /metrics for Prometheus. /healthz: 200 while the process answers; restart the
  server only if that fails, since a restart hangs its guests. /readyz: 503 with
  the reasons while something is wrong.

How it ends:
  SIGTERM or Ctrl-C once: no new monitors; those that are served go on until
  they end; exit 0. Twice: at once, and the monitors are killed (with --on-error
  leave they are left, and hang). --once ends after the first guest.

A guest that cannot be served:
  Its monitor is killed, because without a handler it would hang for ever. Its
  userfaultfd is closed when the monitor has ended, not before: the guest would
  go on with zeros. If the monitor cannot be killed (another user, another PID
  namespace), or is to be left (--on-error leave, --on-refused leave), the
  userfaultfd stays open, and the handler runs, until the monitor ends.
  --on-refused is for monitors whose hand-off does not fit the memory file. A
  connection without a userfaultfd, of a user who is not allowed, or whose text
  is no hand-off, is closed, and nobody is killed.

A guest that there is no memory for (an empty pool of huge pages):
  It waits, /readyz says what is missing, and its pages get the file's bytes as
  soon as there is room. --on-starved kill ends it like one that cannot be
  served.

Exit codes:
  0    all went well
  1    it could not begin, or a guest could not be served
  2    an option or an argument is wrong
  130  interrupted twice (Ctrl-C)
  143  terminated twice (SIGTERM)

Examples:
  uffd serve --socket /run/vm.sock --memory snapshot.mem
  uffd serve --socket vm.sock --memory snapshot.mem --record first.trace --once
  uffd serve --socket vm.sock --memory snapshot.mem --prefetch first.trace
  uffd serve --vm socket=a.sock,memory=a.mem --vm socket=b.sock,memory=b.mem
  uffd serve --socket vm.sock --memory snapshot.mem --metrics 9100

docs/firecracker.md has the API calls in order, and a systemd unit.
`;

interface Flags {
  socket?: string;
  memory?: string;
  vm?: Vm[];
  window: Window;
  wait?: (typeof WAITS)[number];
  placement: Placement;
  eager?: boolean;
  prefetch?: string[];
  force?: boolean;
  record?: string;
  once?: boolean;
  allowUid?: number[];
  onError: 'kill' | 'leave';
  onRefused?: 'kill' | 'leave';
  sizeMismatch: 'warn' | 'refuse';
  onStarved: 'wait' | 'kill';
  handOffTimeout: number;
  acceptTimeout?: number;
  socketMode?: number;
  socketOwner?: { uid: number; gid: number };
  readyFd?: number;
  statsJson?: string;
  metrics?: { host: string; port: number };
}

export function addServe(program: Command): void {
  program
    .command('serve')
    .summary("restore microVM snapshots: answer a guest's page faults from a memory file")
    .description("Restores microVM snapshots: answers a guest's page faults from a memory file.")
    .option('--socket <PATH>', 'the unix socket to listen at; @NAME is an abstract one')
    .option('--memory <FILE>', "the snapshot's memory file")
    .addOption(
      new Option('--vm <socket=PATH,memory=FILE>', 'another socket and its memory; may repeat').argParser(
        collected(vmOf),
      ),
    )
    .addOption(
      new Option('-w, --window <N>', `pages for each fault, 1 to ${WINDOW_MOST}, or 'adaptive'`)
        .default(1)
        .argParser(window),
    )
    .option('--eager', 'install everything else in the background')
    .addOption(
      new Option('--prefetch <TRACE>', 'install first what this run has touched; may repeat').argParser(
        collected((text) => text),
      ),
    )
    .option('--force', 'prefetch from traces of other memory files, too')
    .option('-r, --record <TRACE>', 'record the session (the second to TRACE.2, …)')
    .addOption(
      new Option('--wait <how>', 'how to wait for faults (default: adaptive; with --record: block)').choices(
        WAITS,
      ),
    )
    .addOption(placementOption())
    .option('--once', 'end when the first guest has ended')
    .addOption(
      new Option('--allow-uid <UID>', 'serve monitors of this user; may repeat').argParser(
        collected(integer(0, 2 ** 32 - 2)),
      ),
    )
    .addOption(
      new Option('--on-error <what>', 'a monitor whose guest cannot be served')
        .choices(['kill', 'leave'])
        .default('kill'),
    )
    .addOption(
      new Option(
        '--on-refused <what>',
        'a monitor whose hand-off is refused (default: as --on-error)',
      ).choices(['kill', 'leave']),
    )
    .addOption(
      new Option('--size-mismatch <what>', 'a guest that has less memory than the file')
        .choices(['warn', 'refuse'])
        .default('warn'),
    )
    .addOption(
      new Option('--on-starved <what>', 'a guest that waits for a page there is no memory for')
        .choices(['wait', 'kill'])
        .default('wait'),
    )
    .addOption(
      new Option('--hand-off-timeout <MS>', 'how long a monitor may take to hand over')
        .default(5000)
        .argParser(integer(1, MS_MOST)),
    )
    .addOption(
      new Option(
        '--accept-timeout <MS>',
        'how long to wait for the first monitor (default: for ever)',
      ).argParser(integer(1, MS_MOST)),
    )
    .addOption(new Option('--socket-mode <OCTAL>', "the socket's mode: 600").argParser(modeOf))
    .addOption(new Option('--socket-owner <UID:GID>', "the socket's owner, as numbers").argParser(ownerOf))
    .addOption(
      new Option('--ready-fd <N>', 'write a line to this descriptor when ready').argParser(
        integer(1, MS_MOST),
      ),
    )
    .option('--stats-json <FILE>', 'write what was served to this file at the end')
    .addOption(
      new Option('--metrics <[HOST:]PORT>', 'serve /metrics, /healthz and /readyz over HTTP').argParser(
        addressOf,
      ),
    )
    .addHelpText('after', HELP)
    .action(run);
}

async function run(flags: Flags): Promise<void> {
  const options = serveOptions(flags);
  const { statsJson } = flags;
  if (statsJson !== undefined) checkStats(statsJson, options);
  const ledger = new Ledger();
  const server = await serve(options);
  const display = createDisplay(server);
  ledger.follow(server, statsJson !== undefined);
  let leaving: number | undefined;
  const signals = onSignals((name, times) => {
    if (times === 1) {
      display.say(`${name}: no new monitors; waiting for ${server.sessions.size} of those that are served`);
      announceStopping();
      server.finish();
      return;
    }
    leaving = name === 'SIGINT' ? EXIT.interrupted : EXIT.terminated;
    void server.close({ kill: options.onError === 'kill' });
  });
  let metrics: { close(): void } | undefined;
  try {
    if (flags.metrics) metrics = await serveMetrics(flags.metrics, server, ledger);
    announce(options.vms, flags.readyFd);
    await server.done;
    process.exitCode = leaving ?? (ledger.failures > 0 ? EXIT.failed : EXIT.done);
  } finally {
    await server.close({ kill: options.onError === 'kill' });
    signals.close();
    metrics?.close();
    display.end();
    if (statsJson !== undefined) writeStats(statsJson, ledger.report(), options);
  }
}

function serveOptions(flags: Flags): ServeOptions & { vms: readonly Vm[] } {
  const {
    socket,
    memory,
    vm = [],
    acceptTimeout,
    allowUid,
    handOffTimeout,
    metrics,
    readyFd,
    statsJson,
    ...rest
  } = flags;
  if ((socket === undefined) !== (memory === undefined)) {
    throw new Usage('--socket and --memory belong together');
  }
  const vms = [...(socket !== undefined && memory !== undefined ? [{ socket, memory }] : []), ...vm];
  if (vms.length === 0) throw new Usage('nothing to serve: give --socket PATH and --memory FILE, or --vm');
  return {
    ...rest,
    vms,
    handOffMs: handOffTimeout,
    ...(acceptTimeout === undefined ? {} : { acceptMs: acceptTimeout }),
    ...(allowUid === undefined ? {} : { allowUids: allowUid }),
  };
}

/** For an option that may repeat. */
function collected<T>(parse: (text: string) => T): (text: string, before: T[] | undefined) => T[] {
  return (text, before = []) => [...before, parse(text)];
}

function vmOf(text: string): Vm {
  const found = /^socket=([^,]+),memory=(.+)$/.exec(text);
  if (found) return { socket: found[1] as string, memory: found[2] as string };
  throw new InvalidArgumentError('It must be socket=PATH,memory=FILE.');
}

function modeOf(text: string): number {
  if (/^0?[0-7]{3}$/.test(text)) return Number.parseInt(text, 8);
  throw new InvalidArgumentError('It must be three octal digits, like 660.');
}

function ownerOf(text: string): { uid: number; gid: number } {
  const found = /^(\d{1,10}):(\d{1,10})$/.exec(text);
  const [uid, gid] = [Number(found?.[1]), Number(found?.[2])];
  if (uid < 2 ** 32 - 1 && gid < 2 ** 32 - 1) return { uid, gid };
  throw new InvalidArgumentError('It must be two numbers, like 1000:1000.');
}

function addressOf(text: string): { host: string; port: number } {
  const found = /^(?:(?:\[([^\]]+)\]|([^:]+)):)?(\d{1,5})$/.exec(text);
  const port = Number(found?.[3]);
  if (found && port <= 65_535) return { host: found[1] ?? found[2] ?? '127.0.0.1', port };
  throw new InvalidArgumentError('It must be a port, or a host and a port, like 127.0.0.1:9100.');
}
