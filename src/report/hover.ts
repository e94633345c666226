// A box that describes what is under the pointer on the heat map.

import type uPlot from 'uplot';
import type { Model } from './collect.js';
import { element } from './dom.js';
import { nameOf, WHATS } from './events.js';
import { CELL } from './heat-map.js';
import { counted, duration, grouped, hex } from './numbers.js';

/** Events within this many pixels of the pointer count as under it. */
const REACH = CELL * 1.5;

/** The box of a chart: made once, filled as the pointer moves. */
export function hoverBox(chart: uPlot, model: Model, shown: readonly boolean[]): void {
  const box = element('div', { class: 'hover', role: 'status' });
  box.hidden = true;
  chart.over.append(box);
  const fill = (): void => {
    const { left = -1, top = -1 } = chart.cursor;
    const lines = left < 0 || top < 0 ? [] : linesAt(chart, model, shown, left, top);
    box.hidden = lines.length === 0;
    box.replaceChildren(...lines.map((line) => element('div', {}, line)));
    box.style.left = left > chart.over.clientWidth / 2 ? '' : `${left + 14}px`;
    box.style.right = left > chart.over.clientWidth / 2 ? `${chart.over.clientWidth - left + 14}px` : '';
    box.style.top = top > chart.over.clientHeight / 2 ? '' : `${top + 14}px`;
    box.style.bottom = top > chart.over.clientHeight / 2 ? `${chart.over.clientHeight - top + 14}px` : '';
  };
  chart.hooks.setCursor = [...(chart.hooks.setCursor ?? []), fill];
  chart.over.addEventListener('pointerleave', () => {
    box.hidden = true;
  });
}

function linesAt(chart: uPlot, model: Model, shown: readonly boolean[], left: number, top: number): string[] {
  const { events, rows, row, height, summary } = model;
  const [from, to] = [chart.posToVal(left - REACH, 'x'), chart.posToVal(left + REACH, 'x')];
  const [low, high] = [chart.posToVal(top + REACH, 'y'), chart.posToVal(top - REACH, 'y')];
  const found = WHATS.map(() => 0);
  let only = 0;
  const end = events.firstAt(to);
  for (let at = events.firstAt(from); at < end; at++) {
    const what = events.what[at] as number;
    const first = row[at] as number;
    if (!shown[what] || first >= high || first + (height[at] as number) <= low) continue;
    found[what] = (found[what] as number) + 1;
    only = at;
  }
  const page = rows.pageAt(chart.posToVal(top, 'y'));
  const where = page === undefined ? 'between regions' : hex(page, summary.pageSize);
  const when = duration(chart.posToVal(left, 'x'));
  const total = found.reduce((sum, count) => sum + count, 0);
  if (total === 1) return describe(model, only);
  const told = WHATS.flatMap((name, what) =>
    found[what] ? [`${grouped(found[what] as number)} × ${name}`] : [],
  );
  return [`${when}, ${where}`, ...(told.length > 0 ? told : ['nothing here'])];
}

/** One event in a few lines. */
export function describe({ events, summary }: Model, at: number): string[] {
  const [page, pages] = [events.page[at] as number, events.pages[at] as number];
  const [thread, latency] = [events.thread[at] as number, events.latency[at] as number];
  return [
    `${nameOf(events, at)} at ${duration(events.time[at] as number)}`,
    `${hex(page, summary.pageSize)}${pages > 1 ? `, ${counted(pages, 'page')}` : ''}`,
    ...(thread > 0 ? [`thread ${thread}`] : []),
    ...(latency >= 0 ? [`let go after ${duration(latency)}`] : []),
  ];
}
