// Hand-offs of monitors: every tolerated form is accepted, and every kind of error is refused.

import { strict as assert } from 'node:assert';
import { HandOffReader, parseRegions } from '../../src/serve/handoff-protocol.js';
import { generator, seed, suite } from '../support/harness.js';

const test = suite('serve/handoff');
const MIB = 2 ** 20;
const FILE = 64 * MIB;

const good = {
  base_host_virt_addr: 0x7f00_0000_0000,
  size: 4 * MIB,
  offset: 0,
  page_size: 4096,
  page_size_kib: 4096,
};

function regions(...members: object[]): ReturnType<typeof parseRegions> {
  return parseRegions(JSON.stringify(members), FILE);
}

test('regions in ascending order, whatever order they come in', () => {
  const second = { ...good, base_host_virt_addr: 0x7f10_0000_0000, offset: 4 * MIB };
  assert.deepEqual(regions(second, good), [
    { start: 0x7f00_0000_0000n, length: 4 * MIB, offset: 0, pageSize: 4096 },
    { start: 0x7f10_0000_0000n, length: 4 * MIB, offset: 4 * MIB, pageSize: 4096 },
  ]);
});

test('the page size: its new name, its old one that holds bytes too, or none', () => {
  const { page_size, page_size_kib, ...bare } = good;
  const of = (members: object): number | undefined => regions({ ...bare, ...members })[0]?.pageSize;
  assert.equal(of({ page_size: 2 * MIB, page_size_kib: 4096 }), 2 * MIB);
  assert.equal(of({ page_size_kib: 2 * MIB }), 2 * MIB);
  assert.equal(of({}), 4096);
});

test('members that are not known are no failure, and a part of a page at the end of the file belongs to it', () => {
  assert.equal(regions({ ...good, more: [1] }).length, 1);
  assert.equal(parseRegions(JSON.stringify([{ ...good, size: 8192 }]), 4097).length, 1);
  assert.throws(() => parseRegions(JSON.stringify([{ ...good, size: 8192 }]), 4096), /which has 4096/);
});

for (const [what, text, message] of [
  ['no JSON', '[{', /is not JSON/],
  ['no array', '{}', /not an array/],
  ['no region', '[]', /has no region/],
  ['a number for a region', '[1]', /region 0 is not an object/],
  ['a list for a region', '[[]]', /region 0 is not an object/],
  ['null for a region', '[null]', /region 0 is not an object/],
] as const) {
  test(`${what} is refused`, () => assert.throws(() => parseRegions(text, FILE), message));
}

for (const [what, change, message] of [
  ['a negative size', { size: -4096 }, /size must be an integer from 0/],
  ['a size that is no number', { size: '4096' }, /size must be an integer from 0 .* it is "4096"/],
  ['a size that is no integer', { size: 4096.5 }, /size must be an integer/],
  ['no address', { base_host_virt_addr: undefined }, /base_host_virt_addr must be .* it is undefined/],
  [
    'an address beyond all numbers',
    { base_host_virt_addr: 2 ** 60 },
    /base_host_virt_addr must be an integer/,
  ],
  ['a size of 0', { size: 0 }, /region 0 has no bytes/],
  [
    'an address inside of a page',
    { base_host_virt_addr: 0x7f00_0000_0001 },
    /no multiple of its pages' 4096 bytes/,
  ],
  ['an offset inside of a page', { offset: 100 }, /offset is 100, no multiple/],
  ['a size that is no whole page', { size: 5000 }, /size is 5000, no multiple/],
  [
    'huge pages at an address inside of one',
    { page_size: 2 * MIB, offset: 4096 },
    /offset is 4096, no multiple/,
  ],
  ['pages of another size', { page_size: 65536 }, /pages of 65536 bytes; 4096 and 2097152 can be served/],
  [
    'more than the memory file has',
    { offset: 62 * MIB },
    /needs bytes .* to 69206016 of the memory file, which has/,
  ],
  [
    'an end behind all addresses',
    { base_host_virt_addr: 2 ** 53 - 4096, size: 8192 },
    /ends behind all addresses/,
  ],
] as const) {
  test(`${what} is refused`, () => assert.throws(() => regions({ ...good, ...change }), message));
}

test('regions that overlap are refused', () => {
  assert.throws(
    () => regions(good, { ...good, base_host_virt_addr: 0x7f00_0000_0000 + 2 * MIB, offset: 8 * MIB }),
    /regions at 0x7f0000000000 and 0x7f0000200000 overlap/,
  );
  assert.throws(() => regions(good, good), /overlap/);
});

// ---- hand-offs in pieces -----------------------------------------------------------------------------------

const bytes = (text: string): Uint8Array => Buffer.from(text);

test('a text in pieces of any size, and several texts in one piece', () => {
  const texts = [JSON.stringify([good]), '[{"a":"]}\\"["}]', '[[],{}]'];
  const all = ` ${texts.join('\n \0')}  `;
  for (const size of [1, 2, 3, 7, 1000]) {
    const reader = new HandOffReader();
    const found: string[] = [];
    for (let at = 0; at < all.length; at += size) {
      reader.push(bytes(all.slice(at, at + size)), []);
      for (let one = reader.next(); one; one = reader.next()) found.push(one.text);
    }
    assert.deepEqual(found, texts, `pieces of ${size}`);
  }
});

test('descriptors belong to the text that ends after them; what is left is given back', () => {
  const reader = new HandOffReader();
  reader.push(bytes('[1'), [7, 8]);
  assert.equal(reader.next(), undefined);
  reader.push(bytes(',2]['), []);
  assert.deepEqual(reader.next(), { text: '[1,2]', fds: [7, 8] });
  reader.push(bytes('3]'), [9]);
  assert.deepEqual(reader.next(), { text: '[3]', fds: [9] });
  assert.equal(reader.begun, false);
  reader.push(bytes(''), [10]);
  assert.equal(reader.begun, true);
  assert.deepEqual(reader.giveBack(), [10]);
});

test('what can never become a hand-off is refused at once', () => {
  const refused = (text: string, fds: number[] = []): (() => void) => {
    const reader = new HandOffReader();
    reader.push(bytes(text), fds);
    return () => void reader.next();
  };
  assert.throws(refused('GET / HTTP/1.1'), /begins with "GET \/ HTTP\/1.1"/);
  assert.throws(refused('{"a":1}'), /is a JSON array/);
  assert.throws(refused('[', [1, 2, 3]), /3 descriptors came/);
  assert.throws(refused(`[${' '.repeat(2 ** 20)}`), /at most 1048576 bytes/);
});

test('random bytes: a text, an error, or more to come; nothing else', () => {
  const below = generator(seed());
  const alphabet = '[]{}",:\\ \n01.e-ab';
  for (let round = 0; round < 20_000; round++) {
    const reader = new HandOffReader();
    try {
      for (let piece = 0; piece < 3; piece++) {
        const text = Array.from({ length: below(40) }, () => alphabet[below(alphabet.length)]).join('');
        reader.push(bytes(piece === 0 ? `[${text}` : text), []);
        for (let one = reader.next(); one; one = reader.next()) parseRegions(one.text, FILE);
      }
    } catch (error) {
      assert.equal((error as { code?: string }).code, 'ERR_UFFD_HAND_OFF', String(error));
    }
  }
});

test.run();
