// Parses the search: words, all of which must match an event.

import type { Model } from './collect.js';
import { CAUSES, isFault, KINDS, WHATS, What } from './events.js';

export type Test = (at: number) => boolean;

const UNITS: Readonly<Record<string, number>> = { us: 1, µs: 1, ms: 1e3, s: 1e6 };
export const HINT = 'address, thread 1234, write, removed, >100us';

/**
 * The condition that the words stand for.
 *
 * @throws Error that names the first unknown word
 */
export function parse(text: string, model: Model): Test {
  const words = text
    .toLowerCase()
    .replace(/\bthread[\s:#]+(?=\d)/g, 'thread:')
    .replace(/([<>])\s+(?=\d)/g, '$1')
    .split(/\s+/)
    .filter(Boolean);
  const tests = words.map((word) => testOf(word, model));
  return (at) => tests.every((test) => test(at));
}

function testOf(word: string, model: Model): Test {
  const { events } = model;
  const sort = (WHATS as readonly string[]).indexOf(word);
  if (sort >= 0) return (at) => events.what[at] === sort;
  const kind = (KINDS as readonly string[]).indexOf(word);
  if (kind >= 0) return (at) => isFault(events, at) && events.detail[at] === kind;
  const cause = (CAUSES as readonly string[]).indexOf(word);
  if (cause >= 0) return (at) => events.what[at] === What.removed && events.detail[at] === cause;
  const thread = /^thread:(\d+)$/.exec(word);
  if (thread) return (at) => isFault(events, at) && events.thread[at] === Number(thread[1]);
  const latency = /^([<>])(\d+(?:\.\d+)?)(us|µs|ms|s)?$/.exec(word);
  if (latency) {
    const us = Number(latency[2]) * (UNITS[latency[3] ?? 'us'] as number);
    const more = latency[1] === '>';
    return (at) => {
      const value = events.latency[at] as number;
      return value >= 0 && (more ? value > us : value < us);
    };
  }
  const address = /^(?:0x)?([0-9a-f]{1,14})$/.exec(word);
  if (address) return addressTest(address[1] as string, model);
  throw new Error(`'${word}' means nothing here`);
}

/** Matches an event if the digits are an address in its pages, or the first digits of its own address. */
function addressTest(digits: string, { events, summary }: Model): Test {
  const wanted = Number.parseInt(digits, 16);
  return (at) => {
    const start = (events.page[at] as number) * summary.pageSize;
    const end = start + (events.pages[at] as number) * summary.pageSize;
    if (wanted >= start && wanted < end) return true;
    const length = start > 0 ? Math.floor(Math.log2(start) / 4) + 1 : 1;
    return digits.length < length && Math.floor(start / 16 ** (length - digits.length)) === wanted;
  };
}
