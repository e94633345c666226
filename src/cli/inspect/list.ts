// The calls of a trace, one a line. Lines are written as records are read, so a longer trace needs no more memory. If
// the reader of stdout closes it, the list ends.

import { setImmediate as turn } from 'node:timers/promises';
import { describe, nameOf, type TraceReader } from '../../trace/index.js';
import { concerns, isOneOf, messagesOf, tell } from './match.js';

export interface Filter {
  kinds: readonly string[] | undefined;
  /** Start and end of the addresses to list; the end is exclusive. */
  range: readonly [bigint, bigint] | undefined;
  /** Microseconds since the recording began. */
  fromUs: number;
  toUs: number;
  limit: number;
}

/** Characters that are written at once. */
const CHUNK = 65536;
const INDEX_WIDTH = 9;
const TIME_WIDTH = 12;

/** Prints the records that match a filter, and closes the reader. Returns why the trace ended early, if it did. */
export async function list(
  reader: TraceReader,
  filter: Filter,
  json: boolean,
  stream: NodeJS.WriteStream,
): Promise<string | undefined> {
  let text = '';
  try {
    for (let left = filter.limit; left > 0 && reader.next(); ) {
      const line = lineOf(reader, filter, json);
      if (line === undefined) continue;
      text += `${line}\n`;
      left--;
      if (text.length < CHUNK) continue;
      stream.write(text);
      text = '';
      await turn();
      if (stream.destroyed || stream.errored) return undefined;
    }
  } finally {
    reader.close();
  }
  stream.write(text);
  return reader.damage;
}

function lineOf(reader: TraceReader, filter: Filter, json: boolean): string | undefined {
  const { kinds, range, fromUs, toUs } = filter;
  const { call, payload } = reader;
  if (call.time < fromUs || call.time > toUs) return undefined;
  const messages = messagesOf(call.kind, payload);
  if (kinds && !isOneOf(kinds, call, messages)) return undefined;
  if (range && !concerns(range, call, messages)) return undefined;
  // The description is a record, too, but has no number.
  const index = reader.records - 2;
  const told = messages.map(tell);
  const name = nameOf(call.kind);
  const what = describe(call);
  if (json) return JSON.stringify({ index, timeUs: call.time, name, text: what, messages: told });
  const time = (call.time / 1000).toFixed(3);
  const brought = told.length > 0 ? `: ${told.join('; ')}` : '';
  return `${`${index}`.padStart(INDEX_WIDTH)} ${time.padStart(TIME_WIDTH)}  ${what}${brought}`;
}
