// Plots as SVG, readable on light and dark pages. A plot is drawn for a light page; its style sheet replaces each
// colour on a dark page.

import { init } from 'echarts';
import type { OperatorRow } from '../operator.js';
import type { Scaling } from './scaling.js';

const WIDTH = 760;
const HEIGHT = 440;
/** Colours on a light page, and on a dark one. */
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

/** The text of a plot's SVG file: medians, over a logarithmic axis. */
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

/** The operator's figures, each as a ratio to its aim. A figure at 1, or left of it, meets its aim. */
export function drawOperator(rows: readonly OperatorRow[]): string {
  const height = 120 + rows.length * 24;
  const chart = init(null, null, { renderer: 'svg', ssr: true, width: WIDTH, height });
  const text = { color: INK[0], fontFamily: 'system-ui, sans-serif', fontSize: 12 };
  const title = 'uffd serve: figures by their aims (1: the aim; less is better)';
  const values = rows.map(({ value: { median }, aim, atMost }) => (atMost ? median / aim : aim / median));
  chart.setOption({
    animation: false,
    backgroundColor: PAPER[0],
    title: { text: title, left: 'center', top: 16, textStyle: { ...text, fontSize: 14 } },
    grid: { left: 380, right: 48, top: 56, bottom: 40 },
    xAxis: { type: 'value', min: 0, axisLabel: text, splitLine: { lineStyle: { color: FAINT[0] } } },
    yAxis: { type: 'category', inverse: true, data: rows.map(({ figure }) => figure), axisLabel: text },
    series: [
      {
        type: 'bar',
        data: values.map((value) => ({
          value,
          itemStyle: { color: (value <= 1 ? LINES[3] : LINES[2])[0] },
        })),
        markLine: { symbol: 'none', label: text, lineStyle: { color: INK[0] }, data: [{ xAxis: 1 }] },
      },
    ],
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
