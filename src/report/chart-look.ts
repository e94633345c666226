// What all charts share: axes, a common cursor, and zooming by a mouse selection.

import type uPlot from 'uplot';
import { timesOf } from './numbers.js';
import { color } from './theme.js';
import type { View } from './view.js';

const SYNC = 'time';
/** The margins of a chart: top, right, bottom, left. */
export const PADDING: uPlot.Padding = [8, 24, 0, 0];
/** A selection of fewer pixels is a click. */
const LEAST_SELECTED = 5;
/** For a label on the left: the least number of characters, the pixels of one character, and the margin. */
const LABEL_LEAST = 8;
const CHARACTER = 6.7;
const LABEL_MARGIN = 12;

function axisLook(): uPlot.Axis {
  return {
    font: `11px ${getComputedStyle(document.body).fontFamily}`,
    stroke: () => color('muted'),
    grid: { stroke: () => color('grid'), width: 1 },
    ticks: { show: false },
    gap: 5,
  };
}

/** The time axis. */
export function timeAxis(): uPlot.Axis {
  return {
    ...axisLook(),
    size: 22,
    space: 80,
    values: (_chart, splits) => timesOf(splits),
  };
}

/** The left axis, equally wide in all charts, so that times are aligned. */
export function leftAxis(characters: number, axis: uPlot.Axis): uPlot.Axis {
  const size = Math.ceil(Math.max(characters, LABEL_LEAST) * CHARACTER + LABEL_MARGIN);
  return { ...axisLook(), size, space: 32, ...axis };
}

/** The cursor, and the effect of a selection. `rows`: whether rows can be selected, too. */
export function interaction(view: View, rows: boolean): Pick<uPlot.Options, 'cursor' | 'hooks'> {
  return {
    cursor: {
      sync: { key: SYNC, scales: ['x', null] },
      drag: { x: true, y: rows, uni: 24, dist: LEAST_SELECTED, setScale: false },
      points: { show: !rows, size: 6 },
      y: rows,
      bind: {
        // With a modifier key the mouse pans.
        mousedown: (_chart, _target, handler) => (event) => {
          if (event.button === 0 && !event.shiftKey) handler(event);
          return null;
        },
        dblclick: () => () => {
          view.reset();
          return null;
        },
      },
    },
    hooks: { setSelect: [(chart) => showSelected(chart, view, rows)] },
  };
}

function showSelected(chart: uPlot, view: View, rows: boolean): void {
  const { left, top, width, height } = chart.select;
  const tall = rows && height >= LEAST_SELECTED && height < chart.over.clientHeight - 1;
  if (width < LEAST_SELECTED && !tall) return;
  chart.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
  const time = { from: chart.posToVal(left, 'x'), to: chart.posToVal(left + width, 'x') };
  const part = { from: chart.posToVal(top + height, 'y'), to: chart.posToVal(top, 'y') };
  view.show(width < LEAST_SELECTED ? view.time : time, tall ? part : view.rows);
}

/** Keeps a chart as wide as its element. */
export function fitted(chart: uPlot, container: HTMLElement, height: () => number): ResizeObserver {
  const observer = new ResizeObserver(() => {
    const width = Math.floor(container.clientWidth);
    if (width > 0 && (width !== chart.width || height() !== chart.height))
      chart.setSize({ width, height: height() });
  });
  observer.observe(container);
  return observer;
}
