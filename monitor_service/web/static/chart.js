// One chart: a line with its band, abandoned stretches behind it, and the marks of what happened.

import uPlot from "./vendor/uPlot.esm.js";
import { measured, step as stepText } from "./format.js";
import { FIRST_LAYER, HIGH, LINE, LOW } from "./frame.js";
import { LANES, drawMarks } from "./marks.js";
import { colours, faint } from "./theme.js";

const smallest = (data) => {
  let least = Infinity;
  for (const column of data.slice(1)) for (const value of column) if (value != null && value < least) least = value;
  return least;
};

/** Whether every value is above zero, so that a logarithm can be shown. */
export const canBeLog = (data) => smallest(data) > 0;

function series(label, palette, layerCount) {
  const plain = { points: { show: false }, spanGaps: false };
  const edge = { ...plain, width: 0 };
  const line = { ...plain, label, stroke: palette.accent, width: 1.5, points: { size: 4, filter: lonely } };
  const dimmed = { ...plain, label: `${label}, abandoned`, stroke: faint(palette.quiet, 0.65), width: 1 };
  return [{}, line, edge, edge, ...Array.from({ length: layerCount }, () => dimmed)];
}

/** What stands for a run by itself: its line in a band, and what was abandoned. */
const runLook = (label, layerCount) => (palette) => ({
  series: series(label, palette, layerCount),
  bands: [{ series: [HIGH, LOW], fill: faint(palette.accent, 0.16) }],
});

/** Rows with a gap on both sides: a line cannot show them, a point can. */
function lonely(chart, index, show) {
  if (index !== LINE || show) return null;
  const rows = chart.data[index];
  const [from, to] = chart.series[0].idxs;
  const alone = [];
  for (let row = from; row <= to; row++) {
    if (rows[row] != null && (rows[row - 1] ?? null) === null && (rows[row + 1] ?? null) === null) alone.push(row);
  }
  return alone;
}

/** On a logarithmic axis: powers of ten, and 2 and 5 between them where the axis is short. */
function roundOnly(chart, ticks) {
  const { min, max } = chart.scales.y;
  const kept = max / min > 30 ? [1] : max / min > 4 ? [1, 2, 5] : [1, 2, 3, 4, 5, 6, 7, 8, 9];
  const isKept = (tick) => {
    const leading = tick / 10 ** Math.floor(Math.log10(tick) + 1e-9);
    return kept.some((digit) => Math.abs(leading - digit) < 1e-6);
  };
  return ticks.map((tick) => (isKept(tick) ? tick : null));
}

function axes(palette, log, gutter, below) {
  const common = {
    stroke: palette.quiet,
    font: `11px ${getComputedStyle(document.body).fontFamily}`,
    grid: { stroke: palette.line, width: 1 },
    ticks: { show: false },
  };
  const rounding = log ? { filter: roundOnly, grid: { ...common.grid, filter: roundOnly } } : {};
  return [
    { ...common, grid: { show: false }, gap: below, size: 24 + below, values: (_, ticks) => ticks.map(stepText), incrs: WHOLE },
    { ...common, ...rounding, size: gutter, gap: 8, values: (_, ticks) => ticks.map((tick) => (tick == null ? "" : measured(tick))) },
  ];
}

/** Steps are whole numbers, and so are the distances between their labels. */
const WHOLE = [1, 2, 5].flatMap((first) => Array.from({ length: 9 }, (_, power) => first * 10 ** power)).sort((a, b) => a - b);

function scales(log, range) {
  return { x: { time: false, auto: false, range: () => range() }, y: log ? { distr: 3, log: 10, range: (_, min, max) => [min / 1.2, max * 1.2] } : {} };
}

/**
 * Draw a chart in `holder`.
 *
 * `range()` answers [first, last] step to show, `marks()` what to mark, `onZoom(first, last)` hears a dragged
 * selection (nothing: show all), `onCursor(chart)` each move; `gutter` is the space on the left, in pixels; a `minor` chart has no room for marks;
 * `look(palette)` answers uPlot's series and bands where the frame is not that of one run. Charts with the same `group` share their cursor.
 */
export function drawChart({ holder, label, frame, look, minor, log, group, gutter, range, marks, onZoom, onCursor }) {
  const palette = colours();
  const lanes = minor ? { above: 12, below: 4 } : LANES;
  const select = (chart) => {
    if (chart.select.width < 4) return;
    const edges = [chart.select.left, chart.select.left + chart.select.width];
    chart.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    onZoom(...edges.map((edge) => chart.posToVal(edge, "x")));
  };
  const options = {
    width: holder.clientWidth,
    height: holder.clientHeight,
    padding: [lanes.above, 24, 0, 0],
    legend: { show: false },
    cursor: {
      sync: { key: group, scales: ["x", null] },
      drag: { x: true, y: false, setScale: false },
      points: { size: 7 },
      y: false,
      bind: { dblclick: () => () => onZoom() },
    },
    scales: scales(log, range),
    axes: axes(palette, log, gutter, lanes.below),
    ...(look ?? runLook(label, frame.data.length - FIRST_LAYER))(palette),
    hooks: {
      draw: [(chart) => drawMarks(chart, marks())],
      setSelect: [select],
      setCursor: [onCursor],
    },
  };
  return new uPlot(options, frame.data, holder);
}
