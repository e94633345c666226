// Facts about the system, from the files that have them. A fact that cannot be read is null, because the doctor must
// work on any system.

import { closeSync, constants, existsSync, openSync, readFileSync, statSync } from 'node:fs';
import { release } from 'node:os';
import { koffiVersion } from '../../embed.js';
import { NODE_LEAST } from '../manifest.js';
import { atLeast, type DeviceFindings, type SystemFindings, type UserFindings } from './findings.js';

const DEVICE = '/dev/userfaultfd';
const CAP_SYS_PTRACE = 19n;
/** The mapping of users in the first user namespace: every user maps to itself. */
const ALL_USERS = [0, 0, 2 ** 32 - 1];

export function examineSystem(): Omit<SystemFindings, 'pageSize'> {
  return {
    platform: process.platform,
    arch: process.arch,
    kernel: release(),
    node: process.versions.node,
    nodePath: process.execPath,
    nodeSupported: atLeast(process.versions.node, NODE_LEAST),
    koffi: koffiVersion() ?? null,
    container: containerKind(),
    hugePages: hugePages(),
    transparentHugePages:
      /\[(\w+)\]/.exec(textOf('/sys/kernel/mm/transparent_hugepage/enabled') ?? '')?.[1] ?? null,
  };
}

export function examineUser(): UserFindings {
  const gid = process.getegid?.();
  const capabilities = field('/proc/self/status', 'CapEff');
  const userMap = textOf('/proc/self/uid_map')?.trim().split(/\s+/).map(Number);
  return {
    uid: process.geteuid?.() ?? null,
    group: gid === undefined ? null : nameOf('/etc/group', gid),
    sysPtrace: capabilities !== null && ((BigInt(`0x${capabilities}`) >> CAP_SYS_PTRACE) & 1n) === 1n,
    userNamespace: userMap !== undefined && userMap.join() !== ALL_USERS.join(),
    unprivileged: numberIn(textOf('/proc/sys/vm/unprivileged_userfaultfd')),
    seccomp: numberIn(field('/proc/self/status', 'Seccomp')),
  };
}

export function ptraceScope(): number | null {
  return numberIn(textOf('/proc/sys/kernel/yama/ptrace_scope'));
}

export function examineDevice(): DeviceFindings | null {
  try {
    const { uid, gid, mode } = statSync(DEVICE);
    return {
      owner: nameOf('/etc/passwd', uid),
      group: nameOf('/etc/group', gid),
      mode: (mode & 0o7777).toString(8).padStart(4, '0'),
      open: tryToOpen(),
    };
  } catch {
    return null;
  }
}

function tryToOpen(): string {
  try {
    closeSync(openSync(DEVICE, constants.O_RDWR | constants.O_NONBLOCK));
    return 'ok';
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? String(error);
  }
}

function containerKind(): string | null {
  if (process.env.KUBERNETES_SERVICE_HOST) return 'kubernetes';
  if (existsSync('/.dockerenv')) return 'docker';
  if (existsSync('/run/.containerenv')) return 'podman';
  // systemd-nspawn, LXC and others set this variable for the programs that they start.
  return process.env.container || null;
}

export function hugePages(): SystemFindings['hugePages'] {
  const [kib, total, free, reserved] = [
    'Hugepagesize',
    'HugePages_Total',
    'HugePages_Free',
    'HugePages_Rsvd',
  ].map((name) => numberIn(field('/proc/meminfo', name)));
  if (!kib) return null;
  return { bytes: kib * 1024, total: total ?? 0, free: Math.max(0, (free ?? 0) - (reserved ?? 0)) };
}

function textOf(path: string): string | null {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return null;
  }
}

/** The value after `name:` in a file of such lines. */
function field(path: string, name: string): string | null {
  return new RegExp(`^${name}:\\s*(\\S+)`, 'm').exec(textOf(path) ?? '')?.[1] ?? null;
}

function numberIn(text: string | null): number | null {
  const value = Number.parseInt(text ?? '', 10);
  return Number.isNaN(value) ? null : value;
}

/** The name of a user or a group in a file like /etc/passwd; the number if it has none. */
function nameOf(path: string, id: number): string {
  const line = (textOf(path) ?? '').split('\n').find((one) => one.split(':')[2] === String(id));
  return line?.split(':')[0] || String(id);
}
