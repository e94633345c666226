// What an operator sees: on a terminal one live line for each guest, elsewhere a structured line of log for each thing
// that happens.

import { MultiBar, type SingleBar } from 'cli-progress';
import { pino } from 'pino';
import type { Server, Session, SessionEnd } from '../../serve/index.js';
import { percentileUs } from '../latency.js';
import { byteSize, columnsOf, grouped, printable } from '../text.js';

export interface Display {
  say(text: string): void;
  /** Nothing is drawn any more. May be called again. */
  end(): void;
}

const INTERVAL_MS = 100;

export function createDisplay(server: Server, stream = process.stderr): Display {
  return liveDisplay(server, stream) ?? new LogDisplay(server);
}

/** The lines, where they can be live. */
export function liveDisplay(server: Server, stream: NodeJS.WriteStream): Display | undefined {
  return stream.isTTY && process.env.TERM !== 'dumb' ? new LiveDisplay(server, stream) : undefined;
}

class LogDisplay implements Display {
  // Written at once: the last line before an end is the one that matters.
  readonly #log = pino(
    { base: null, timestamp: pino.stdTimeFunctions.isoTime },
    // If nobody reads the log any more, guests are served all the same.
    pino.destination({ fd: 2, sync: true }).on('error', () => {}),
  );

  constructor(server: Server) {
    const log = this.#log;
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
      const facts = {
        vm: id,
        end: end.how,
        ...tally.toJSON(),
        p99Us: percentileUs(latency, 99),
      };
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

class LiveDisplay implements Display {
  readonly #bars: MultiBar;
  readonly #lines = new Map<Session, { bar: SingleBar; faults: number }>();
  readonly #timer: NodeJS.Timeout;
  #ended = false;

  constructor(server: Server, stream: NodeJS.WriteStream) {
    const room = columnsOf(stream);
    this.#bars = new MultiBar({
      stream,
      format: 'vm {vm} {bar} {resident} of {size}  {rate} faults/s  p99 {p99} µs',
      barsize: Math.max(5, Math.min(30, room - 62)),
      barCompleteChar: '█',
      barIncompleteChar: '░',
      hideCursor: false,
      linewrap: true,
    });
    this.#timer = setInterval(() => this.#draw(), INTERVAL_MS);
    server.on('refused', (error, _peer, _vm, guest) => {
      const end = guest ? (guest.killed ? ', and was killed' : ', and its guest hangs') : '';
      this.say(`a monitor was turned away${end}: ${printable(error.message)}`);
    });
    server.on('problem', (about, reason) => this.say(`${about}: ${printable(reason)}`));
    server.on('solved', (about) => this.say(`${about}: the problem is over`));
    server.on('warned', (reason) => this.say(`a warning: ${printable(reason)}`));
    server.on('starved', (reason) => this.say(`monitors wait: ${reason}`));
    server.on('begun', (session) => {
      const bar = this.#bars.create(session.bytes, 0, told(session, 0));
      this.#lines.set(session, { bar, faults: 0 });
    });
    server.on('killed', ({ id }) => this.say(`vm ${id}: its monitor was killed`));
    server.on('ended', (session, end) => this.#over(session, end));
  }

  say(text: string): void {
    if (this.#ended) return;
    this.#bars.log(`${text}\n`);
    // Behind the last bar nothing is drawn any more by itself.
    this.#bars.update();
  }

  end(): void {
    if (this.#ended) return;
    this.#ended = true;
    clearInterval(this.#timer);
    this.#bars.stop();
  }

  #over(session: Session, end: SessionEnd): void {
    if (this.#ended) return;
    const line = this.#lines.get(session);
    this.#lines.delete(session);
    line?.bar.update(session.resident, told(session, 0));
    line?.bar.stop();
    const why = end.how === 'failed' ? `failed: ${printable(end.error.message)}` : end.how;
    this.say(
      `vm ${session.id} ${why}: ${grouped(session.tally.get('faults'))} faults, ${byteSize(session.resident)} resident`,
    );
  }

  #draw(): void {
    for (const [session, line] of this.#lines) {
      const faults = session.tally.get('faults');
      const rate = ((faults - line.faults) * 1000) / INTERVAL_MS;
      line.faults = faults;
      line.bar.update(session.resident, told(session, rate));
    }
  }
}

function told({ id, bytes, resident, latency }: Session, rate: number): Record<string, string> {
  return {
    vm: `${id}`,
    resident: byteSize(resident),
    size: byteSize(bytes),
    rate: grouped(rate),
    p99: latency.count > 0 ? percentileUs(latency, 99).toFixed(1) : '-',
  };
}
