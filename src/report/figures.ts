// The figures of a trace, as `uffd inspect` tells them. `data-field` names the field of its JSON.

import type { TraceSummary } from '../trace/index.js';
import { element } from './dom.js';
import { byteSize, duration, grouped } from './numbers.js';

type Figure = readonly [name: string, field: string, value: string, beside?: string];

export function figures(summary: TraceSummary): HTMLElement {
  const { faultsByKind, changes, latencyUs } = summary;
  const kinds = Object.entries(faultsByKind).flatMap(([kind, { read, write }]) => [
    ...(read > 0 ? [`${grouped(read)} ${kind} read`] : []),
    ...(write > 0 ? [`${grouped(write)} ${kind} write`] : []),
  ]);
  const happened = Object.entries(changes).filter(([, count]) => count > 0);
  const changed = happened.map(([name, count]) => `${grouped(count)} ${name}`).join(', ');
  const all = Object.values(changes).reduce((sum, count) => sum + count, 0);
  const latency = (value: number): string => (latencyUs.count > 0 ? duration(value) : '–');
  const told: Figure[] = [
    ['Faults', 'faults', grouped(summary.faults), kinds.join(', ')],
    ['Pages', 'pages', grouped(summary.pages), `of ${byteSize(summary.pageSize)}`],
    ['Duration', 'durationMs', duration(summary.durationMs * 1000)],
    ['Latency p50', 'latencyUs.p50', latency(latencyUs.p50)],
    ['p90', 'latencyUs.p90', latency(latencyUs.p90)],
    ['p99', 'latencyUs.p99', latency(latencyUs.p99)],
    ['Most', 'latencyUs.most', latency(latencyUs.most)],
    ...(summary.threads > 0 ? [['Threads', 'threads', grouped(summary.threads)] as const] : []),
    ['Changes', 'changes', grouped(all), changed],
    ['Not let go', 'unresolved', grouped(summary.unresolved)],
    ['EAGAINs', 'eagains', grouped(summary.eagains)],
    ['Re-offers', 'reoffers', grouped(summary.reoffers)],
  ];
  const list = element('dl', { class: 'figures' });
  for (const [name, field, value, beside = ''] of told) {
    const figure = element('div', {}, element('dt', {}, name));
    figure.append(element('dd', { 'data-field': field, 'data-value': `${numberOf(summary, field)}` }, value));
    if (beside) figure.append(element('dd', { class: 'beside' }, beside));
    list.append(figure);
  }
  return list;
}

/** The number itself, which is shown rounded. */
function numberOf(summary: TraceSummary, field: string): number {
  if (field === 'changes') return Object.values(summary.changes).reduce((sum, count) => sum + count, 0);
  const value = field
    .split('.')
    .reduce<unknown>((from, name) => (from as Record<string, unknown>)[name], summary);
  return value as number;
}

/** What the trace is, in rows. */
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
