// Plots as SVG, readable on light and on dark: drawn for a light page, with a style that says what each colour is on a
// dark one.

import { init } from 'echarts';
import type { Scaling } from './scaling.js';

const WIDTH = 760;
const HEIGHT = 440;
/** On light, and on dark. */
const PAPER = ['#f6f8fa', '#0d1117'] as const;
const INK = ['#1f2328', '#e6edf3'] as const;
const FAINT = ['#d1d9e0', '#30363d'] as const;
const LINES = [
  ['#57606a', '#9198a1'],
  ['#0969da', '#58a6ff'],
  ['#cf222e', '#ff7b72'],
  ['#1a7f37', '#3fb950'],
  ['#9a6700', '#d29922'],
  ['#8250df', '#bc8cff'],
] as const;

/** The plot as a file's text: medians, over an axis of powers. */
export function draw({ title, x, y, lines }: Scaling): string {
  const chart = init(null, null, { renderer: 'svg', ssr: true, width: WIDTH, height: HEIGHT });
  const text = { color: INK[0], fontFamily: 'system-ui, sans-serif', fontSize: 12 };
  const all = lines.flatMap(({ points }) => points.map((point) => point.x));
  const axis = {
    nameTextStyle: text,
    axisLabel: { ...text, formatter: (value: number) => value.toLocaleString('en') },
    axisLine: { lineStyle: { color: INK[0] } },
    axisTick: { lineStyle: { color: INK[0] } },
    splitLine: { lineStyle: { color: FAINT[0] } },
  };
  chart.setOption({
    animation: false,
    backgroundColor: PAPER[0],
    color: LINES.map(([light]) => light),
    title: { text: title, left: 'center', top: 16, textStyle: { ...text, fontSize: 14 } },
    legend: { bottom: 12, itemGap: 20, textStyle: text },
    grid: { left: 76, right: 48, top: 76, bottom: 84 },
    xAxis: {
      ...axis,
      type: 'log',
      logBase: all.every(isPowerOfTwo) ? 2 : 10,
      min: Math.min(...all),
      max: Math.max(...all),
      name: x,
      nameLocation: 'middle',
      nameGap: 30,
    },
    yAxis: { ...axis, type: 'value', min: 0, name: y },
    series: lines.map(({ name, points }) => ({
      type: 'line',
      name,
      symbol: 'circle',
      symbolSize: 7,
      data: points.map((point) => [point.x, point.value.median]),
    })),
  });
  const svg = chart.renderToSVGString();
  chart.dispose();
  return svg.replace('>', `><title>${title}</title><style>${darkStyle()}</style>`);
}

function darkStyle(): string {
  const rules = [PAPER, INK, FAINT, ...LINES].map(
    ([light, dark]) => `[fill="${light}"]{fill:${dark}}[stroke="${light}"]{stroke:${dark}}`,
  );
  return `@media (prefers-color-scheme:dark){${rules.join('')}}`;
}

function isPowerOfTwo(value: number): boolean {
  return Number.isInteger(Math.log2(value));
}
