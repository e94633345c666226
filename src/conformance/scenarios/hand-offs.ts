// Scenarios of the hand-off: Firecracker sends one message, a JSON array of regions with the userfaultfd attached.

import { closeSync, openSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { handOffText } from '../../serve/handoff-protocol.js';
import type { Guest } from '../guest.js';
import type { Scenario } from '../scenario.js';

const PIECES = 5;
const PAUSE_MS = 30;
/** The address of the last page that 64 bits can express: the end of a longer region wraps around. */
const LAST_PAGE = 2n ** 64n - 4096n;

/** The regions as the hand-off has them, with other members. */
function textWith(
  guest: Guest,
  change: (region: Record<string, unknown>) => Record<string, unknown>,
): Buffer {
  const regions = JSON.parse(Buffer.from(handOffText(guest.regions)).toString()) as Record<string, unknown>[];
  return Buffer.from(JSON.stringify(regions.map(change)));
}

function expectSome(guest: Guest): void {
  for (const page of [0, 1, guest.pages >> 1, guest.pages - 2]) guest.expect(page);
}

/** A scenario in which the handler must refuse what is sent. */
function refused(name: string, why: string, send: (guest: Guest) => Promise<void>): Scenario {
  return {
    ...{ name, why, handsOver: true, handlerMay: 'refuse' },
    async play(guest) {
      await guest.connect();
      await send(guest);
      await guest.untilClosed();
    },
  };
}

export const HAND_OFFS: readonly Scenario[] = [
  {
    name: 'hand-off-in-pieces',
    why: 'A stream socket may deliver the text in pieces; the handler must read until the JSON is complete.',
    handsOver: true,
    async play(guest) {
      await guest.connect();
      const text = handOffText(guest.regions);
      const each = Math.ceil(text.length / PIECES);
      for (let at = 0; at < text.length; at += each) {
        await guest.send(text.subarray(at, at + each), at === 0 ? [guest.uffd] : []);
        await sleep(PAUSE_MS);
      }
      expectSome(guest);
    },
  },
  {
    name: 'hand-off-late-descriptor',
    why: 'Some monitors deliver the text before the descriptor; the handler asks again, or refuses the monitor.',
    handsOver: true,
    handlerMay: 'refuse',
    async play(guest) {
      await guest.connect();
      await guest.send(handOffText(guest.regions));
      await sleep(PAUSE_MS);
      await guest.send(Buffer.from(' '), [guest.uffd]);
      await guest.untilServed(1);
      expectSome(guest);
    },
  },
  {
    name: 'hand-off-two-descriptors',
    why: "Some monitors send the guest's memory as a second descriptor; the first one is the userfaultfd.",
    handsOver: true,
    async play(guest) {
      await guest.connect();
      const file = openSync(guest.file, 'r');
      await guest.send(handOffText(guest.regions), [guest.uffd, file]);
      closeSync(file);
      expectSome(guest);
    },
  },
  {
    name: 'hand-off-three-descriptors',
    why: 'Descriptors that the handler does not know must be closed: the first one is the userfaultfd.',
    handsOver: true,
    handlerMay: 'refuse',
    async play(guest) {
      await guest.connect();
      const file = openSync(guest.file, 'r');
      await guest.send(handOffText(guest.regions), [guest.uffd, file, file]);
      closeSync(file);
      await guest.untilServed(1);
      expectSome(guest);
    },
  },
  {
    name: 'hand-off-more-members',
    why: 'A later version of the monitor may send members that the handler does not know, in another order.',
    handsOver: true,
    async play(guest) {
      await guest.connect();
      const text = textWith(guest, (region) => ({
        slot: { id: 7, tags: ['a', '}]'] },
        ...Object.fromEntries(Object.entries(region).reverse()),
        later: null,
      }));
      await guest.send(text, [guest.uffd]);
      expectSome(guest);
    },
  },
  {
    name: 'hand-off-old-page-size',
    why: 'Older monitors send the page size as page_size_kib alone, which holds bytes in spite of its name.',
    handsOver: true,
    handlerMay: 'refuse',
    async play(guest) {
      await guest.connect();
      await guest.send(
        textWith(guest, ({ page_size, ...region }) => region),
        [guest.uffd],
      );
      await guest.untilServed(1);
      expectSome(guest);
    },
  },
  refused(
    'hand-off-bad-json',
    'Text that is no JSON needs a clear error; a crash or a hang is none.',
    (guest) => guest.send(Buffer.from('[{"base_host_virt_addr": }]'), [guest.uffd]),
  ),
  refused('hand-off-no-array', 'JSON of another form needs a clear error.', (guest) =>
    guest.send(Buffer.from('{"hello": "handler"}'), [guest.uffd]),
  ),
  refused('hand-off-negative', 'A negative size must not become a huge number.', (guest) =>
    guest.send(
      textWith(guest, (region) => ({ ...region, size: -4096 })),
      [guest.uffd],
    ),
  ),
  refused(
    'hand-off-beyond-file',
    'A region that ends behind the memory file would be filled with bytes that are not there.',
    (guest) =>
      guest.send(
        textWith(guest, (region) => ({ ...region, offset: guest.pages * guest.pageSize })),
        [guest.uffd],
      ),
  ),
  refused('hand-off-empty', 'An array without regions is no guest: nothing would ever be served.', (guest) =>
    guest.send(Buffer.from('[]'), [guest.uffd]),
  ),
  refused('hand-off-empty-region', 'A region without a page is an error of the monitor.', (guest) =>
    guest.send(
      textWith(guest, (region) => ({ ...region, size: 0 })),
      [guest.uffd],
    ),
  ),
  refused('hand-off-unaligned', 'A region that begins inside of a page cannot be filled.', (guest) =>
    guest.send(
      textWith(guest, ({ base_host_virt_addr: start, ...region }) => ({
        ...{ base_host_virt_addr: (start as number) + 512, ...region },
      })),
      [guest.uffd],
    ),
  ),
  refused(
    'hand-off-overflow',
    'The sum of address and size must not wrap around to a small number.',
    (guest) => {
      const text = Buffer.from(handOffText(guest.regions)).toString();
      const start = text.replace(/("base_host_virt_addr":)\d+/, `$1${LAST_PAGE}`);
      return guest.send(Buffer.from(start), [guest.uffd]);
    },
  ),
  refused(
    'hand-off-overlap',
    'Of two regions with the same address, no rule says which one holds.',
    (guest) => guest.send(handOffText([...guest.regions, ...guest.regions]), [guest.uffd]),
  ),
  refused(
    'hand-off-page-size',
    'A page size that the handler does not know must be refused, not rounded.',
    (guest) =>
      guest.send(
        textWith(guest, (region) => ({ ...region, page_size: 12_288, page_size_kib: 12_288 })),
        [guest.uffd],
      ),
  ),
  refused('hand-off-no-descriptor', 'A text without a userfaultfd cannot be served.', async (guest) => {
    await guest.send(handOffText(guest.regions));
    guest.endSending();
  }),
  refused(
    'hand-off-wrong-descriptor',
    'A descriptor that is no userfaultfd needs a clear error.',
    async (guest) => {
      const file = openSync('/dev/null', 'r');
      await guest.send(handOffText(guest.regions), [file]);
      closeSync(file);
      guest.endSending();
    },
  ),
  refused('hand-off-half', 'The monitor may die in the middle of its message.', async (guest) => {
    const text = handOffText(guest.regions);
    await guest.send(text.subarray(0, text.length >> 1), [guest.uffd]);
    guest.endSending();
  }),
  {
    name: 'hand-off-none',
    why: 'The monitor may die between connecting and its message.',
    handsOver: true,
    handlerMay: 'refuse',
    async play(guest) {
      await guest.connect();
      guest.disconnect();
    },
  },
];
