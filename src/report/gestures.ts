// Wheel and fingers on a chart. Ctrl and the wheel zooms where the pointer is (a trackpad's pinch says the same), the
// wheel alone does where the chart has the focus; Shift pans. One finger pans time, and leaves scrolling to the page; two
// zoom and pan.

import type uPlot from 'uplot';
import type { Part, View } from './view.js';

const WHEEL_ZOOM = 0.0022;
/** Fingers that are nearer to each other in one direction do not zoom in it. */
const LEAST_SPREAD = 40;

interface Finger {
  x: number;
  y: number;
}

/** `rows`: whether the chart's other axis is that of the view's rows. */
export function hearGestures(chart: uPlot, view: View, rows: boolean): void {
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
  const focused = over.closest(':focus-within') !== null;
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

/** What lay under the fingers lies under them still. */
function moved(view: View, before: Finger[], after: Finger[], rows: boolean, over: HTMLElement): void {
  const [a, b] = before as [Finger, Finger?];
  const [c, d] = after as [Finger, Finger?];
  const time = follow(view.time, a.x, c.x, b?.x, d?.x, LEAST_SPREAD / over.clientWidth);
  const part = rows ? follow(view.rows, a.y, c.y, b?.y, d?.y, LEAST_SPREAD / over.clientHeight) : view.rows;
  view.show(time, part);
}

function follow(part: Part, from: number, to: number, from2 = from, to2 = to, least: number): Part {
  const size = part.to - part.from;
  const near = Math.abs(from2 - from) < least || Math.abs(to2 - to) < least;
  const scale = near ? 1 : Math.abs((from2 - from) / (to2 - to));
  const middle = part.from + (size * (from + from2)) / 2;
  const start = middle - (size * scale * (to + to2)) / 2;
  return { from: start, to: start + size * scale };
}
