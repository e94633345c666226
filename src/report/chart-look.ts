// What all charts have in common: axes, a cursor that all follow, and zooming by what is selected with the mouse.

import type uPlot from 'uplot';
import { timesOf } from './numbers.js';
import { color } from './theme.js';
import type { View } from './view.js';

const SYNC = 'time';
/** A selection that is narrower is a click. */
const LEAST_SELECTED = 5;
/** Of the left axis; the same for all, so that times lie one below the other. */
const WIDE_AXIS = 96;
const NARROW_AXIS = 66;
const NARROW_PAGE = 640;

export function axisSize(): number {
  return innerWidth < NARROW_PAGE ? NARROW_AXIS : WIDE_AXIS;
}

function axisLook(): uPlot.Axis {
  return {
    font: `11px ${getComputedStyle(document.body).fontFamily}`,
    stroke: () => color('muted'),
    grid: { stroke: () => color('grid'), width: 1 },
    ticks: { show: false },
    gap: 6,
  };
}

/** The axis of time. */
export function timeAxis(): uPlot.Axis {
  return {
    ...axisLook(),
    size: 26,
    space: 80,
    values: (_chart, splits) => timesOf(splits),
  };
}

export function leftAxis(axis: uPlot.Axis): uPlot.Axis {
  return { ...axisLook(), size: axisSize, space: 32, ...axis };
}

/** The cursor, and what a selection does. `rows`: whether rows can be selected too. */
export function interaction(view: View, rows: boolean): Pick<uPlot.Options, 'cursor' | 'hooks'> {
  return {
    cursor: {
      sync: { key: SYNC, scales: ['x', null] },
      drag: { x: true, y: rows, uni: 24, dist: LEAST_SELECTED, setScale: false },
      points: { show: !rows, size: 6 },
      y: rows,
      bind: {
        // With a modifier the mouse pans.
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

/** Keeps a chart as wide as the element that it is in. */
export function fitted(chart: uPlot, container: HTMLElement, height: () => number): ResizeObserver {
  const observer = new ResizeObserver(() => {
    const width = Math.floor(container.clientWidth);
    if (width > 0 && (width !== chart.width || height() !== chart.height))
      chart.setSize({ width, height: height() });
  });
  observer.observe(container);
  return observer;
}
