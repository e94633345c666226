// Wheel and touch gestures on a chart. The wheel with Ctrl zooms around the pointer, and so does a pinch on a trackpad.
// The wheel alone zooms if the chart has the focus. With Shift it pans. One finger pans time and leaves scrolling to
// the page; two fingers zoom and pan.

import type uPlot from 'uplot';
import type { Interval, View } from './view.js';

const WHEEL_ZOOM = 0.0022;
/** If two fingers are closer than this in one direction, they do not zoom in it. */
const LEAST_SPREAD = 40;

interface Finger {
  x: number;
  y: number;
}

/** `rows`: whether the chart's other axis is that of the view's rows. */
export function onGestures(chart: uPlot, view: View, rows: boolean): void {
  const { over } = chart;
  over.addEventListener('wheel', (event) => turned(event, over, view, rows), { passive: false });
  const fingers = new Map<number, Finger>();
  const place = (event: PointerEvent): Finger => {
    const { left, top } = over.getBoundingClientRect();
    return { x: (event.clientX - left) / over.clientWidth, y: 1 - (event.clientY - top) / over.clientHeight };
  };
  const pans = (event: PointerEvent): boolean => event.pointerType !== 'mouse' || event.shiftKey;
  over.addEventListener('pointerdown', (event) => {
    if (!pans(event)) return;
    over.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, place(event));
  });
  over.addEventListener('pointermove', (event) => {
    const before = [...fingers.values()];
    if (!fingers.has(event.pointerId)) return;
    fingers.set(event.pointerId, place(event));
    moved(view, before, [...fingers.values()], rows, over);
  });
  for (const end of ['pointerup', 'pointercancel'] as const)
    over.addEventListener(end, (event) => fingers.delete(event.pointerId));
}

function turned(event: WheelEvent, over: HTMLElement, view: View, rows: boolean): void {
  const focused = over.closest('[role=application]:focus-within') !== null;
  if (!event.ctrlKey && !event.metaKey && !event.shiftKey && !focused) return;
  event.preventDefault();
  if (event.shiftKey) {
    view.pan((event.deltaX || event.deltaY) / over.clientWidth, 0);
    return;
  }
  const { left, top } = over.getBoundingClientRect();
  const factor = Math.exp(event.deltaY * WHEEL_ZOOM * (event.ctrlKey && Math.abs(event.deltaY) < 50 ? 4 : 1));
  if (rows && event.altKey) view.zoomRows(factor, 1 - (event.clientY - top) / over.clientHeight);
  else view.zoomTime(factor, (event.clientX - left) / over.clientWidth);
}

/** The points under the fingers stay under them. */
function moved(view: View, before: Finger[], after: Finger[], rows: boolean, over: HTMLElement): void {
  const [a, b] = before as [Finger, Finger?];
  const [c, d] = after as [Finger, Finger?];
  const time = follow(view.time, a.x, c.x, b?.x, d?.x, LEAST_SPREAD / over.clientWidth);
  const part = rows ? follow(view.rows, a.y, c.y, b?.y, d?.y, LEAST_SPREAD / over.clientHeight) : view.rows;
  view.show(time, part);
}

function follow(part: Interval, from: number, to: number, from2 = from, to2 = to, least: number): Interval {
  const size = part.to - part.from;
  const near = Math.abs(from2 - from) < least || Math.abs(to2 - to) < least;
  const scale = near ? 1 : Math.abs((from2 - from) / (to2 - to));
  const middle = part.from + (size * (from + from2)) / 2;
  const start = middle - (size * scale * (to + to2)) / 2;
  return { from: start, to: start + size * scale };
}
