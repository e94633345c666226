// Resolves host names without libuv's thread pool: from /etc/hosts, and over c-ares, which uses sockets of the event
// loop. `dns.lookup` needs a thread of the pool, and all of them may be asleep in faults that only this thread resolves.
// Sources of names other than /etc/hosts and DNS (mDNS, LDAP) are not supported.

import { Resolver } from 'node:dns';
import { readFileSync } from 'node:fs';
import { isIP, type LookupFunction } from 'node:net';

interface Address {
  address: string;
  family: number;
}

export interface Names {
  /** For `net.connect` and `tls.connect`. */
  readonly lookup: LookupFunction;
  /** Ends queries that are under way. */
  close(): void;
}

/** The system's configuration. */
export interface NamesConfiguration {
  readonly hosts: Map<string, Address[]>;
  readonly search: Search;
  /** Name servers; undefined for those of the system. */
  readonly servers?: readonly string[];
}

function systemConfiguration(): NamesConfiguration {
  return {
    hosts: parseHosts(readIfPresent('/etc/hosts')),
    search: parseSearch(readIfPresent('/etc/resolv.conf')),
  };
}

export function openNames(
  timeoutMs: number,
  { hosts, search, servers }: NamesConfiguration = systemConfiguration(),
): Names {
  const resolver = new Resolver({ timeout: Math.min(timeoutMs, 5000), tries: 3 });
  if (servers) resolver.setServers(servers);

  async function addresses(name: string): Promise<Address[]> {
    const plain = name.toLowerCase().replace(/\.$/, '');
    const known = hosts.get(plain);
    if (known) return known;
    // RFC 6761: these names are the loopback interface, and are not to be looked up.
    if (/(^|\.)localhost$/.test(plain)) return [at('127.0.0.1'), at('::1')];
    let failure: unknown;
    for (const candidate of candidates(name, search)) {
      const answers = await Promise.allSettled([
        query((done) => resolver.resolve4(candidate, done)),
        query((done) => resolver.resolve6(candidate, done)),
      ]);
      const found = answers.flatMap((answer) => (answer.status === 'fulfilled' ? answer.value : []));
      if (found.length > 0) return found;
      // That a name has addresses of one family only is not what went wrong.
      const errors = answers.flatMap((answer) => (answer.status === 'rejected' ? [answer.reason] : []));
      failure = errors.find(({ code }) => code !== 'ENODATA') ?? errors[0];
    }
    throw failure;
  }

  return {
    lookup(name, options, callback) {
      addresses(name).then(
        (all) => {
          const wanted = options.family === 4 || options.family === 6 ? options.family : 0;
          const usable = all.filter(({ family }) => wanted === 0 || family === wanted);
          const [first] = usable;
          if (!first) {
            callback(Object.assign(new Error(`no IPv${wanted} address`), { code: 'ENOTFOUND' }), '', 0);
          } else if (options.all) {
            callback(null, usable);
          } else {
            callback(null, first.address, first.family);
          }
        },
        (error) => callback(error, '', 0),
      );
    },
    close: () => resolver.cancel(),
  };
}

function query(
  ask: (done: (error: NodeJS.ErrnoException | null, found: string[]) => void) => void,
): Promise<Address[]> {
  return new Promise((resolve, reject) => {
    ask((error, found) => (error ? reject(error) : resolve(found.map(at))));
  });
}

function at(address: string): Address {
  return { address, family: isIP(address) };
}

/** The addresses of each name in a file like /etc/hosts. */
export function parseHosts(text: string): Map<string, Address[]> {
  const hosts = new Map<string, Address[]>();
  for (const line of text.split('\n')) {
    const [address = '', ...names] = line.replace(/#.*/, '').trim().split(/\s+/);
    if (isIP(address) === 0) continue;
    for (const name of names) {
      const lower = name.toLowerCase();
      hosts.set(lower, [...(hosts.get(lower) ?? []), at(address)]);
    }
  }
  return hosts;
}

export interface Search {
  /** Domains to append to a name. */
  readonly domains: readonly string[];
  /** A name with at least this many dots is first tried as it is. */
  readonly dots: number;
}

/** The search list of a file like /etc/resolv.conf. c-ares queries only the name that it is given. */
export function parseSearch(text: string): Search {
  let domains: string[] = [];
  let dots = 1;
  for (const line of text.split('\n')) {
    const [keyword, ...values] = line
      .replace(/[#;].*/, '')
      .trim()
      .split(/\s+/);
    // The last of several lines counts.
    if (keyword === 'search' || keyword === 'domain') domains = values;
    for (const value of keyword === 'options' ? values : []) {
      const given = /^ndots:(\d+)$/.exec(value)?.[1];
      if (given !== undefined) dots = Math.min(Number(given), 15);
    }
  }
  return { domains: domains.map((domain) => domain.replace(/\.$/, '')).filter(Boolean), dots };
}

/** The full names to query for a name, in order. */
export function candidates(name: string, { domains, dots }: Search): string[] {
  if (name.endsWith('.')) return [name.slice(0, -1)];
  const longer = domains.map((domain) => `${name}.${domain}`);
  return name.split('.').length - 1 >= dots ? [name, ...longer] : [...longer, name];
}

function readIfPresent(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}
