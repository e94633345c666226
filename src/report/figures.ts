// The figures of a trace, as in `uffd inspect`. `data-field` names the field in the JSON of `uffd inspect`.

import type { TraceSummary } from '../trace/index.js';
import { element } from './dom.js';
import { byteSize, duration, grouped } from './numbers.js';

/** `value` is exact; the page shows it rounded, as `text`. */
type Figure = readonly [name: string, field: string, value: number, text: string, beside?: string];

export function figures(summary: TraceSummary): HTMLElement {
  const { faultsByKind, changes, latencyUs } = summary;
  const kinds = Object.entries(faultsByKind).flatMap(([kind, { read, write }]) => [
    ...(read > 0 ? [`${grouped(read)} ${kind} read`] : []),
    ...(write > 0 ? [`${grouped(write)} ${kind} write`] : []),
  ]);
  const happened = Object.entries(changes).filter(([, count]) => count > 0);
  const changed = happened.map(([name, count]) => `${grouped(count)} ${name}`).join(', ');
  const all = Object.values(changes).reduce((sum, count) => sum + count, 0);
  const count = (...[name, field, value, beside = '']: [string, string, number, string?]): Figure => [
    name,
    field,
    value,
    grouped(value),
    beside,
  ];
  const latency = (name: string, field: 'p50' | 'p90' | 'p99' | 'most'): Figure => {
    const us = latencyUs[field];
    return [name, `latencyUs.${field}`, us, latencyUs.count > 0 ? duration(us) : '–'];
  };
  const told: Figure[] = [
    count('Faults', 'faults', summary.faults, kinds.join(', ')),
    count('Pages', 'pages', summary.pages, `of ${byteSize(summary.pageSize)}`),
    ['Duration', 'durationMs', summary.durationMs, duration(summary.durationMs * 1000)],
    latency('Latency p50', 'p50'),
    latency('p90', 'p90'),
    latency('p99', 'p99'),
    latency('Most', 'most'),
    ...(summary.threads > 0 ? [count('Threads', 'threads', summary.threads)] : []),
    count('Changes', 'changes', all, changed),
    count('Not let go', 'unresolved', summary.unresolved),
    count('EAGAINs', 'eagains', summary.eagains),
    count('Re-offers', 'reoffers', summary.reoffers),
  ];
  const list = element('dl', { class: 'figures' });
  for (const [name, field, value, text, beside = ''] of told) {
    const figure = element('div', {}, element('dt', {}, name));
    figure.append(element('dd', { 'data-field': field, 'data-value': `${value}` }, text));
    if (beside) figure.append(element('dd', { class: 'beside' }, beside));
    list.append(figure);
  }
  return list;
}

/** Rows about the trace itself. */
export function details(summary: TraceSummary): HTMLElement {
  const { ranges, rangesRegistered } = summary;
  const told: [string, string][] = [
    ['userfaultfd', `by ${summary.how}; ${summary.features.join(', ') || 'no features'}`],
    [
      'trace',
      `${byteSize(summary.bytes)}, ${grouped(summary.records)} records in ${grouped(summary.blocks)} blocks`,
    ],
    ['about', JSON.stringify(summary.about, undefined, 1)],
    [
      'calls',
      Object.entries(summary.calls)
        .map(([name, count]) => `${name} ${grouped(count)}`)
        .join(', '),
    ],
    ...ranges.map(({ start, bytes, modes }): [string, string] => [
      'range',
      `${start}, ${byteSize(bytes)}, ${modes.join(' and ')}`,
    ]),
  ];
  const more = rangesRegistered - ranges.length;
  if (more > 0) told.push(['', `and ${grouped(more)} ranges more`]);
  const list = element('dl', {});
  for (const [name, value] of told) list.append(element('dt', {}, name), element('dd', {}, value));
  return element('details', { class: 'details' }, element('summary', {}, 'About this trace'), list);
}
