// What the operator sees of a server on a terminal: a live line for each guest.

import { MultiBar, type SingleBar } from 'cli-progress';
import type { Server, Session, SessionEnd } from '../../serve/index.js';
import { percentileUs } from '../latency.js';
import { byteSize, columnsOf, grouped, printable } from '../text.js';

const INTERVAL_MS = 100;

export class LiveDisplay {
  readonly #server: Server;
  readonly #bars: MultiBar;
  readonly #lines = new Map<Session, { bar: SingleBar; faults: number }>();
  readonly #timer: NodeJS.Timeout;
  #ended = false;

  constructor(server: Server, stream: NodeJS.WriteStream) {
    this.#server = server;
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
    // After the last bar has ended, the library draws nothing by itself.
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
    const { storage } = this.#server;
    const chunks = storage
      ? `; all guests: ${grouped(storage.cache.chunks)} chunks from the cache, ${grouped(storage.store.chunks)} from the store`
      : '';
    const shared = session.tally.get('shared');
    const ofThese = shared > 0 ? `, ${byteSize(shared)} mapped from shared memory` : '';
    this.say(
      `vm ${session.id} ${why}: ${grouped(session.tally.get('faults'))} faults, ${byteSize(session.resident)} resident${ofThese}${chunks}`,
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
