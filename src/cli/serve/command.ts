// `uffd serve`: its options, its help, and how it ends.

import { closeSync, writeSync } from 'node:fs';
import { type Command, InvalidArgumentError, Option } from 'commander';
import { notifySystemd, type ServeOptions, serve, type Vm } from '../../serve/index.js';
import { byteCount, integer, PLACEMENT_HELP, placementOption, WAITS, windowOption } from '../arguments.js';
import { EXIT, Usage } from '../exit.js';
import { onSignals } from '../signals.js';
import { addStoreOptions, type StoreFlags, storeOptions } from '../store/options.js';
import { printable } from '../text.js';
import { loadDisplay } from './display.js';
import { checkStats, writeStats } from './stats-file.js';
import { ServedTotals } from './totals.js';

const MS_MOST = 2 ** 31 - 1;

const HELP = `
How it works:
  A monitor (Firecracker, or one that speaks its protocol) loads a snapshot with
  mem_backend { backend_type: "Uffd", backend_path: PATH }. It connects to PATH
  and hands its guest's memory over. From then on every page that the guest
  touches is copied from FILE, when it is touched. Pages that a balloon gave
  back are zeros. Any number of monitors may connect, one after the other or at
  once; each guest has a thread of its own.

  After the hand-off, --prefetch installs the pages that a recorded run has
  touched, and --eager all others. A page that the guest touches comes first.

Where the thread that serves a guest runs (the guest's threads never move):
${PLACEMENT_HELP}

When it is ready:
  A line "ready: PATH" on stdout for each socket. --ready-fd writes the same to
  a descriptor and closes it. Under systemd (Type=notify) READY=1 is sent.

Over HTTP (--metrics):
  /metrics is for Prometheus. /healthz returns 200 while the process answers;
  restart the server only if it fails, because a restart hangs its guests.
  /readyz returns 503 with the reasons while there is a problem.

How it ends:
  After SIGTERM or Ctrl-C it accepts no new monitors, and exits with 0 when its
  guests have ended. After a second one it exits at once, and kills the monitors
  (with --on-error leave they are left, and hang). With --once it exits after
  the first guest.

A guest that cannot be served:
  Its monitor is killed, because without a handler it would hang for ever. Its
  userfaultfd is closed only after the monitor has ended; otherwise the guest
  would continue with zeros. If the monitor cannot be killed (another user,
  another PID namespace), or must be left (--on-error leave, --on-refused
  leave), the userfaultfd stays open, and the handler runs, until the monitor
  ends. --on-refused is for monitors whose hand-off does not fit the memory
  file. Any other connection (no userfaultfd, a user who is not allowed, text
  that is no hand-off) is closed, and no process is killed.

Diff snapshots (--layer DIFF, after --memory; in --vm: ,layer=DIFF):
  Firecracker's diff snapshots lie on top of FILE, the oldest first. They are
  sparse files of the same size: a hole means "as below". Nothing is copied.
  Copy a diff with its holes, and with no others (not cp --sparse=always).
  FILE may be a block device, like /dev/vg0/vm1.

A snapshot in a store (--memory NAME.caibx --store STORE --cache DIR):
  uffd pack makes it. A chunk that a guest touches is fetched once for all
  guests of this machine, verified, kept in DIR and mapped from there. The
  working set that lies beside the index, or --prefetch, is fetched and
  installed first; --eager does the same with the rest. If the store is away,
  guests wait, and /readyz says why; --store-deadline ends them like a guest
  that cannot be served. Servers may share DIR.

A memory compressed with zstd (--memory NAME.zst --cache DIR):
  NAME.zst, a path or an http(s):// or s3:// URL, is in zstd's seekable format:
  the frames that a guest touches are read by ranges, verified and kept in DIR.
  It needs no store. A file that changes while it is served is refused, and
  guests wait for the old one. A plain .zst file cannot be served.

Guests that share pages (--share-pages):
  A monitor may ask for a sealed memfd with the memory (docs/firecracker.md has
  the protocol). Its guest then shares each page with the guests of others that
  have asked, until it writes to the page. Stock Firecracker does not ask: each
  of its guests gets copies, as without the option.

A guest without memory for its pages (an empty pool of huge pages):
  It waits, and /readyz says what is missing. As soon as there is memory, its
  pages get the file's bytes. --on-starved kill ends it like a guest that cannot
  be served.

Exit codes:
  0    success
  1    it could not start, or a guest could not be served
  2    an option or an argument is wrong
  130  interrupted twice (Ctrl-C)
  143  terminated twice (SIGTERM)

Examples:
  uffd serve --socket /run/vm.sock --memory snapshot.mem
  uffd serve --socket vm.sock --memory snapshot.mem --record first.trace --once
  uffd serve --socket vm.sock --memory snapshot.mem --prefetch first.trace
  uffd serve --vm socket=a.sock,memory=a.mem --vm socket=b.sock,memory=b.mem
  uffd serve --socket vm.sock --memory snapshot.mem --metrics 9100
  uffd serve --socket vm.sock --memory base.mem --layer monday.diff
  uffd serve --socket vm.sock --memory vm.caibx --store chunks --cache cache
  uffd serve --socket vm.sock --memory https://host/vm.mem.zst --cache cache

docs/guides/serve-a-snapshot.md has the API calls in order; docs/firecracker.md
has the jailer, privileges, failures and metrics.
`;

/** Most flags are options of `serve`. */
interface Flags
  extends Omit<ServeOptions, 'vms' | 'about' | 'allowUids' | 'handOffMs' | 'acceptMs' | 'storeOptions'>,
    StoreFlags {
  socket?: string;
  memory?: string;
  layer?: string[];
  vm?: Vm[];
  allowUid?: number[];
  handOffTimeout: number;
  cacheSize?: number;
  storeDeadline?: number;
  acceptTimeout?: number;
  readyFd?: number;
  statsJson?: string;
  metrics?: { host: string; port: number };
}

export function addServe(program: Command): void {
  const command = program
    .command('serve')
    .summary("restore microVM snapshots: answer a guest's page faults from a memory file")
    .description("Restores microVM snapshots: answers a guest's page faults from a memory file.")
    .option('--socket <PATH>', 'the unix socket to listen at; @NAME is an abstract one')
    .option('--memory <FILE>', "the snapshot's memory file")
    .option(
      '--layer <DIFF>',
      'a diff snapshot on top of --memory; may repeat',
      collected((text) => text),
    )
    .option(
      '--vm <socket=PATH,memory=FILE>',
      'another socket and its memory (…,layer=DIFF…); may repeat',
      collected(vmOf),
    )
    .addOption(windowOption())
    .option('--eager', 'install all other pages in the background')
    .option(
      '--prefetch <TRACE>',
      'first install the pages of this recorded run; may repeat',
      collected((text) => text),
    )
    .option('--force', 'accept traces of other memory files')
    .option('-r, --record <TRACE>', 'record the session (the second to TRACE.2, …)')
    .option('--share-pages', 'let guests share pages, if their monitors ask for it')
    .addOption(new Option('--wait <how>', 'how to wait for faults (default: adaptive)').choices(WAITS))
    .addOption(placementOption())
    .option('--once', 'exit when the first guest has ended')
    .option(
      '--allow-uid <UID>',
      'serve monitors of this user; may repeat',
      collected(integer(0, 2 ** 32 - 2)),
    )
    .addOption(
      new Option('--on-error <what>', 'what to do with a monitor whose guest cannot be served')
        .choices(['kill', 'leave'])
        .default('kill'),
    )
    .addOption(
      new Option(
        '--on-refused <what>',
        'what to do with a monitor whose hand-off is refused (default: as --on-error)',
      ).choices(['kill', 'leave']),
    )
    .addOption(
      new Option('--size-mismatch <what>', 'what to do with a guest that has less memory than the file')
        .choices(['warn', 'refuse'])
        .default('warn'),
    )
    .addOption(
      new Option('--on-starved <what>', 'what to do with a guest for whose page there is no memory')
        .choices(['wait', 'kill'])
        .default('wait'),
    )
    .option(
      '--hand-off-timeout <MS>',
      'how long a monitor may take for its hand-off',
      integer(1, MS_MOST),
      5000,
    )
    .option(
      '--accept-timeout <MS>',
      'how long to wait for the first monitor (default: for ever)',
      integer(1, MS_MOST),
    )
    .option('--socket-mode <OCTAL>', "the socket's mode: 600", modeOf)
    .option('--socket-owner <UID:GID>', "the socket's owner, as numbers", ownerOf)
    .option('--ready-fd <N>', 'write a line to this descriptor when ready', integer(1, MS_MOST))
    .option('--stats-json <FILE>', 'write what was served to this file at the end')
    .option('--metrics <[HOST:]PORT>', 'serve /metrics, /healthz and /readyz over HTTP', addressOf)
    .option('--store <STORE>', 'where the chunks of an index (.caibx) are: a folder or URL')
    .option('--cache <DIR>', 'keep chunks in this folder; servers may share it')
    .option('--cache-size <SIZE>', "the cache's size, like 50G (default: 20G)", byteCount(1))
    .option(
      '--store-deadline <S>',
      'how long a guest waits for a chunk (default: for ever)',
      integer(1, Math.floor(MS_MOST / 1000)),
    );
  addStoreOptions(command, true).addHelpText('after', HELP).action(run);
}

async function run(flags: Flags): Promise<void> {
  const options = serveOptions(flags);
  const { statsJson } = flags;
  if (statsJson !== undefined) checkStats(statsJson, options);
  const ledger = new ServedTotals();
  const createDisplay = await loadDisplay();
  const server = await serve(options);
  const display = createDisplay(server);
  ledger.follow(server, statsJson !== undefined);
  let leaving: number | undefined;
  const signals = onSignals((name, times) => {
    if (times === 1) {
      display.say(`${name}: no new monitors; waiting for ${server.sessions.size} guests`);
      notifySystemd('STOPPING=1');
      server.finish();
      return;
    }
    leaving = name === 'SIGINT' ? EXIT.interrupted : EXIT.terminated;
    void server.close({ kill: options.onError === 'kill' });
  });
  let metrics: { close(): void } | undefined;
  try {
    if (flags.metrics) {
      const { serveMetrics } = await import('./metrics.js');
      metrics = await serveMetrics(flags.metrics, server, ledger);
    }
    announce(options.vms, flags.readyFd);
    await server.done;
    process.exitCode = leaving ?? (ledger.failures > 0 ? EXIT.failed : EXIT.done);
  } finally {
    await server.close({ kill: options.onError === 'kill' });
    signals.close();
    metrics?.close();
    display.end();
    if (statsJson !== undefined) writeStats(statsJson, ledger.report(server.storage), options);
  }
}

/** Reports to the parent process, to systemd and on stdout that the server listens. */
function announce(vms: readonly Vm[], readyFd: number | undefined): void {
  const lines = vms.map(({ socket }) => `ready: ${printable(socket)}\n`).join('');
  process.stdout.write(lines);
  if (readyFd !== undefined) {
    writeSync(readyFd, lines);
    closeSync(readyFd);
  }
  notifySystemd(`READY=1\nSTATUS=listening at ${vms.map(({ socket }) => printable(socket)).join(', ')}`);
}

function serveOptions(flags: Flags): ServeOptions & { vms: readonly Vm[] } {
  const {
    socket,
    memory,
    layer,
    vm = [],
    acceptTimeout,
    allowUid,
    handOffTimeout,
    metrics,
    readyFd,
    statsJson,
    cacheSize,
    storeDeadline,
    store,
    cache,
    ...rest
  } = flags;
  if (store !== undefined && cache === undefined) throw new Usage('--store needs --cache');
  if ((socket === undefined) !== (memory === undefined)) {
    throw new Usage('--socket and --memory belong together');
  }
  if (layer !== undefined && memory === undefined) throw new Usage('--layer belongs to --memory');
  const one =
    socket !== undefined && memory !== undefined ? [{ socket, memory, ...(layer && { layers: layer }) }] : [];
  const vms = [...one, ...vm];
  if (vms.length === 0) throw new Usage('nothing to serve: give --socket PATH and --memory FILE, or --vm');
  return {
    ...rest,
    vms,
    handOffMs: handOffTimeout,
    ...(acceptTimeout === undefined ? {} : { acceptMs: acceptTimeout }),
    ...(allowUid === undefined ? {} : { allowUids: allowUid }),
    ...(store !== undefined && { store }),
    ...(cache !== undefined && { cache, storeOptions: storeOptions(flags) }),
    ...(cacheSize !== undefined && { cacheBytes: cacheSize }),
    ...(storeDeadline !== undefined && { storeDeadlineMs: storeDeadline * 1000 }),
  };
}

/** Makes the parser of an option that may be given several times. */
function collected<T>(parse: (text: string) => T): (text: string, before: T[] | undefined) => T[] {
  return (text, before = []) => [...before, parse(text)];
}

function vmOf(text: string): Vm {
  const [first = '', ...layers] = text.split(',layer=');
  const found = /^socket=([^,]+),memory=(.+)$/.exec(first);
  if (found && layers.every((layer) => layer !== '')) {
    const [socket, memory] = found.slice(1) as [string, string];
    return { socket, memory, ...(layers.length > 0 && { layers }) };
  }
  throw new InvalidArgumentError('It must be socket=PATH,memory=FILE, and any number of ,layer=DIFF.');
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
