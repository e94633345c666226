// A systemd manager for one test: a user manager in namespaces of its own. Its /run and /var/lib are empty, and /run is
// its runtime folder, so that units of the system find their paths.
//
// Rules:
//  - The machine's own systemd, files and cgroups are left alone.
//  - A guardian waits until the test closes a pipe or ends. Then it kills PID 1 of the namespaces, which ends all their
//    processes and mounts, removes the cgroups, and ends.
//  - Every wait has a time limit. Its error contains the output of the units and of the manager.

import { execFile, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { leaveOut, skip } from '../../support/harness.js';

const SYSTEMD = '/lib/systemd/systemd';
const REPOSITORY = fileURLToPath(new URL('../../../../', import.meta.url));

/** Limit of each wait. After 90 s, systemd kills processes that ignore SIGTERM: the limit must be shorter. */
const LIMIT_MS = 30_000;

/** `uffd` as units start it: in a folder that no ProtectHome= hides. */
export const UFFD = '/run/node /run/package/build/src/cli/main.js';

/** $1: Node, $2: this package, $3: the script of PID 1 of the namespaces. */
const GUARDIAN = `
set -eu
mount -t tmpfs tmpfs /run
mkdir -p /run/package /run/cgroup /run/systemd/system /run/systemd/user.conf.d
printf '%s\\n' '[Manager]' DefaultStandardOutput=inherit DefaultStandardError=inherit >/run/systemd/user.conf.d/output.conf
: >/run/node
mount --bind "$1" /run/node
mount --bind "$2" /run/package
mount -t tmpfs tmpfs /var/lib
mount -t cgroup2 cgroup2 /run/cgroup
group=/run/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)/uffd-test-$$
mkdir "$group"
exec 3<&0
(
  echo 0 >"$group/cgroup.procs"
  exec unshare --mount --pid --cgroup --fork --kill-child --mount-proc sh -c "$3"
) &
manager=$!
echo "$manager"
# The reader of this output may end first: a write must not fail then.
exec >/dev/null 2>&1
(read -r _ <&3 || kill -9 $manager) &
watch=$!
wait $manager || :
kill $watch || :
for _ in $(seq 100); do
  find "$group" -depth -type d -exec rmdir {} + && break
  sleep 0.1
done
`;

/** systemd is a child of this shell: as PID 1 it would take itself for the system's manager. */
const MANAGER = `
set -eu
mount -t tmpfs tmpfs /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
env -i PATH="$PATH" HOME=/run XDG_RUNTIME_DIR=/run ${SYSTEMD} --user --unit=basic.target --log-target=console &
wait
`;

/** Skips the test if systemd is not installed, or namespaces cannot be created. */
export function needSystemd(): void {
  if (!existsSync(SYSTEMD)) skip('systemd is not installed');
  if (process.getuid?.() !== 0) skip('only root can give systemd namespaces of its own');
  const words = ['--mount', '--pid', '--cgroup', '--fork', '--mount-proc'];
  const tried = spawnSync('unshare', [...words, 'mount', '-t', 'cgroup2', 'cgroup2', '/run'], {
    encoding: 'utf8',
  });
  if (tried.error) skip(`there is no unshare: ${tried.error.message}`);
  // A container may allow neither, even for root.
  if (tried.status !== 0) leaveOut(`namespaces and cgroups are refused here: ${tried.stderr.trim()}`);
}

export class Manager {
  readonly #guardian;
  readonly #over: Promise<unknown>;
  #said = '';
  /** Process ID of `unshare`, which waits for PID 1 of the namespaces. */
  #pid = 0;

  private constructor() {
    const words = ['--mount', 'sh', '-c', GUARDIAN, 'sh', process.execPath, REPOSITORY, MANAGER];
    // The guardian has a process group of its own, so that it can clean up after a test that is killed.
    this.#guardian = spawn('unshare', words, { detached: true, stdio: ['pipe', 'pipe', 'pipe'] });
    for (const stream of [this.#guardian.stdout, this.#guardian.stderr]) {
      stream.setEncoding('utf8').on('data', (text: string) => {
        this.#said += text;
      });
    }
    // The guardian may have ended.
    this.#guardian.stdin.on('error', () => {});
    this.#over = new Promise((resolve) => this.#guardian.once('close', resolve));
  }

  /** Calls `body` with a manager of units, given by file name. Then it ends, with all processes that it started. */
  static async with(
    units: Readonly<Record<string, string>>,
    body: (manager: Manager) => Promise<void>,
  ): Promise<void> {
    const manager = new Manager();
    try {
      await manager.#begin(units);
      await body(manager);
    } finally {
      manager.#guardian.stdin.end();
      await manager.#over;
    }
  }

  async #begin(units: Readonly<Record<string, string>>): Promise<void> {
    await this.until('the manager to begin', async () => {
      this.#pid = Number(/^\d+$/m.exec(this.#said)?.[0] ?? 0);
      if (this.#pid === 0 || !existsSync(this.path('/run/systemd/private'))) return false;
      return this.systemctl('is-active', 'basic.target').then(
        () => true,
        () => false,
      );
    });
    for (const [name, text] of Object.entries(units)) {
      const path = this.path(`/run/systemd/user/${name}`);
      mkdirSync(dirname(path), { recursive: true });
      writeFileSync(path, text);
    }
    await this.systemctl('daemon-reload');
  }

  /** The path by which this process reaches a file of the manager's namespaces. */
  path(name: string): string {
    return `/proc/${this.#pid}/root${name}`;
  }

  /** The output of the units and of the manager. */
  get said(): string {
    return this.#said;
  }

  /** Runs `systemctl` to its end. Returns its output. */
  async systemctl(...words: readonly string[]): Promise<string> {
    return this.#run('env', 'XDG_RUNTIME_DIR=/run', 'systemctl', '--user', '--no-pager', ...words);
  }

  /** The value of a unit's property. */
  async show(unit: string, property: string): Promise<string> {
    return (await this.systemctl('show', '--value', '-p', property, unit)).trim();
  }

  async untilIs(unit: string, property: string, value: string): Promise<void> {
    await this.until(`${property} of ${unit} to be ${value}`, async () => {
      return (await this.show(unit, property)) === value;
    });
  }

  /** The process ID of a unit's main process, in the manager's namespace. */
  async mainPid(unit: string): Promise<number> {
    return Number(await this.show(unit, 'MainPID'));
  }

  async signal(pid: number, name: 'KILL' | 'STOP' | 'CONT'): Promise<void> {
    await this.#run('sh', '-c', `kill -s ${name} ${pid}`);
  }

  /** Stops a process, and waits until all of its threads have stopped, since a signal takes time to reach them. */
  async halt(pid: number): Promise<void> {
    await this.signal(pid, 'STOP');
    await this.until('all threads to stop', () =>
      this.#threads(pid).every((tid) => /^State:\s*T/m.test(this.proc(pid, `task/${tid}/status`))),
    );
  }

  /** The content of a file in /proc/PID of the manager's namespace; empty if the process is gone. */
  proc(pid: number, name: string): string {
    try {
      return readFileSync(this.path(`/proc/${pid}/${name}`), 'utf8');
    } catch {
      return '';
    }
  }

  /** The threads of a process that sleep in a page fault, each with the number of its sleeps so far. */
  asleep(pid: number): string[] {
    return this.#threads(pid)
      .filter((tid) => this.proc(pid, `task/${tid}/wchan`) === 'handle_userfault')
      .map((tid) => {
        const sleeps = /^voluntary_ctxt_switches:\s*(\d+)$/m.exec(this.proc(pid, `task/${tid}/status`));
        return `thread ${tid}: ${sleeps?.[1]}`;
      });
  }

  #threads(pid: number): string[] {
    try {
      return readdirSync(this.path(`/proc/${pid}/task`));
    } catch {
      return [];
    }
  }

  async until(what: string, condition: () => boolean | Promise<boolean>): Promise<void> {
    const begun = performance.now();
    while (!(await condition())) {
      if (this.#guardian.exitCode !== null) this.#fail('the manager has ended');
      if (performance.now() - begun > LIMIT_MS) this.#fail(`it took too long for ${what}`);
      await sleep(10);
    }
  }

  async #run(...command: readonly string[]): Promise<string> {
    const spaces = ['mnt', 'pid_for_children'].map((name) => `/proc/${this.#pid}/ns/${name}`);
    const words = [`--mount=${spaces[0]}`, `--pid=${spaces[1]}`, '--', ...command];
    try {
      const options = { timeout: LIMIT_MS, killSignal: 'SIGKILL' } as const;
      return (await promisify(execFile)('nsenter', words, options)).stdout;
    } catch (error) {
      return this.#fail((error as Error).message);
    }
  }

  #fail(why: string): never {
    throw new Error(`${why}\n${this.#said}`);
  }
}
