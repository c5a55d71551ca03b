// Stretches of a run become the columns that uPlot draws.
//
// A stretch is {attempt, abandoned, series: {name: {step[], line[], low[], high[]}}, gaps[]}. `line` holds numbers
// or the texts "NaN", "Infinity", "-Infinity"; low and high are null where a point stands for one step only; gaps are
// steps before which an update was refused. In a column null breaks the line, undefined does not.

import { isNotFinite } from "./format.js";

/** The columns of a chart: steps, line, low and high edge of its band, then the abandoned layers. */
export const [LINE, LOW, HIGH, FIRST_LAYER] = [1, 2, 3, 4];

const EMPTY = { step: [], line: [], low: [], high: [] };

/** Just before `step`, where a refused update leaves its gap. */
const justBefore = (step) => step - 0.5;

/** Index of the first of `sorted` that is not below `value`. */
export function indexOf(sorted, value) {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

function sharedSteps(stretches) {
  const steps = ({ series, gaps }) => [...Object.values(series).flatMap(({ step }) => step), ...gaps.map(justBefore)];
  return [...new Set(Float64Array.from(stretches.flatMap(steps)).sort())];
}

/** Values of one line as a column whose rows belong to `x`: null outside of it, undefined where it has no point. */
function column(x, step, values, gaps) {
  const rows = new Array(x.length).fill(null);
  if (!step.length) return rows;
  let at = indexOf(x, step[0]);
  rows.fill(undefined, at, indexOf(x, step.at(-1)) + 1);
  step.forEach((here, index) => {
    while (x[at] < here) at++;
    rows[at] = isNotFinite(values[index]) ? null : (values[index] ?? undefined);
  });
  for (const gap of gaps) rows[indexOf(x, justBefore(gap))] = null;
  return rows;
}

const ofSeries = (stretch, name) => stretch.series[name] ?? EMPTY;

const ends = (stretch, name) => [ofSeries(stretch, name).step[0], ofSeries(stretch, name).step.at(-1)];

/** Abandoned stretches in as few layers as keep them from overlapping: usually one. */
function layersOf(stretches, name) {
  const layers = [];
  for (const stretch of stretches) {
    const [first] = ends(stretch, name);
    if (first === undefined) continue;
    const free = layers.find((layer) => ends(layer.at(-1), name)[1] < first);
    if (free) free.push(stretch);
    else layers.push([stretch]);
  }
  return layers;
}

function layerColumn(x, layer, name) {
  const rows = new Array(x.length).fill(null);
  for (const stretch of layer) {
    const { step, line } = ofSeries(stretch, name);
    column(x, step, line, stretch.gaps).forEach((value, row) => {
      if (value !== null) rows[row] = value;
    });
  }
  return rows;
}

const notFinite = ({ step, line }) =>
  step.flatMap((at, row) => (isNotFinite(line[row]) ? [{ step: at, value: line[row] }] : []));

/**
 * What each chart shows: {name: {data: [x, line, low, high, ...abandoned layers], notFinite: [{step, value}]}}.
 * All charts of a run get the same x, which is what lets them share cursor and zoom.
 */
export function frames(effective, abandoned, names) {
  const x = sharedSteps([effective, ...abandoned]);
  const frame = (name) => {
    const points = ofSeries(effective, name);
    const parts = ["line", "low", "high"].map((part) => column(x, points.step, points[part], effective.gaps));
    const dimmed = layersOf(abandoned, name).map((layer) => layerColumn(x, layer, name));
    return { data: [x, ...parts, ...dimmed], notFinite: notFinite(points) };
  };
  return Object.fromEntries(names.map((name) => [name, frame(name)]));
}
