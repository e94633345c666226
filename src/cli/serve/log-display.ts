// What the operator sees of a server without a terminal: a log line for each event.

import { pino } from 'pino';
import type { Server } from '../../serve/index.js';
import { percentileUs } from '../latency.js';

/** Fields that each line has. */
const FIELDS = { base: null, timestamp: pino.stdTimeFunctions.isoTime };

/** Logs a line to nowhere: the first line takes a millisecond, for which the first guest would wait. */
function warmUp(): void {
  pino(FIELDS, { write() {} }).info({ socket: '', pid: 0 }, '');
}

export class LogDisplay {
  // Written synchronously, because the last line before an exit is the most important one.
  readonly #log = pino(
    FIELDS,
    // If the log's reader is gone, guests are still served.
    pino.destination({ fd: 2, sync: true }).on('error', () => {}),
  );

  constructor(server: Server) {
    const log = this.#log;
    setImmediate(warmUp);
    server.on('connected', (peer, { socket }) => log.info({ socket, ...peer }, 'a monitor has connected'));
    server.on('refused', (error, peer, { socket }, guest) => {
      const facts = { socket, ...peer, reason: error.message };
      if (!guest) log.warn(facts, 'a monitor was turned away');
      else if (guest.killed) log.error(facts, 'a hand-off was refused; the monitor was killed');
      else log.error(facts, 'a hand-off was refused; the monitor is left, and its guest hangs');
    });
    server.on('problem', (about, reason) => log.error({ about, reason }, 'there is a problem'));
    server.on('solved', (about) => log.info({ about }, 'the problem is over'));
    server.on('warned', (reason, { socket }) => log.warn({ socket, reason }, 'a warning'));
    server.on('starved', (reason, { socket }) => log.warn({ socket, reason }, 'monitors wait'));
    server.on('begun', ({ id, peer, bytes, regions }, { socket, memory }) => {
      const { pid } = peer;
      log.info({ vm: id, socket, memory, pid, bytes, regions: regions.length }, 'a guest is served');
    });
    server.on('killed', ({ id, peer }) => log.error({ vm: id, pid: peer.pid }, 'the monitor was killed'));
    server.on('ended', (session, end) => {
      const { id, tally, latency } = session;
      const { storage } = server;
      const chunks = storage && { fromCache: storage.cache.chunks, fromStore: storage.store.chunks };
      const facts = { vm: id, end: end.how, ...tally.toJSON(), p99Us: percentileUs(latency, 99), ...chunks };
      if (end.how === 'failed')
        log.error({ ...facts, reason: end.error.message }, 'a guest could not be served');
      else log.info(facts, 'a guest has ended');
    });
  }

  say(text: string): void {
    this.#log.info(text);
  }

  end(): void {}
}
