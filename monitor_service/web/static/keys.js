// A chart by keyboard: move the cursor, jump from mark to mark, zoom.

import { indexOf } from "./frame.js";

function moveTo(chart, step) {
  const { min, max } = chart.scales.x;
  const left = chart.valToPos(Math.min(Math.max(step, min), max), "x");
  const { top } = chart.cursor;
  chart.setCursor({ left, top: top >= 0 ? top : chart.over.clientHeight / 2 });
}

/** Where the cursor is, or the first step shown. */
const here = (chart) => (chart.cursor.left >= 0 ? chart.posToVal(chart.cursor.left, "x") : chart.scales.x.min);

function byRows(chart, count) {
  const x = chart.data[0];
  const row = Math.min(Math.max(indexOf(x, here(chart) - 0.25) + count, 0), x.length - 1);
  moveTo(chart, x[row]);
}

function toMark(chart, marks, forward) {
  const steps = marks.map(({ step }) => step).sort((one, other) => one - other);
  const at = here(chart);
  const next = forward ? steps.find((step) => step > at + 0.5) : steps.findLast((step) => step < at - 0.5);
  if (next !== undefined) moveTo(chart, next);
}

function zoomBy(chart, factor, onZoom) {
  const { min, max } = chart.scales.x;
  const middle = here(chart);
  onZoom(middle - (middle - min) * factor, middle + (max - middle) * factor);
}

/** Answer keys on `holder`; `chart()` is the chart now in it, `onMove` is called after each move of the cursor. */
export function answerKeys({ holder, chart, marks, onZoom, onMove }) {
  const actions = {
    ArrowLeft: (event) => byRows(chart(), event.shiftKey ? -10 : -1),
    ArrowRight: (event) => byRows(chart(), event.shiftKey ? 10 : 1),
    Home: () => moveTo(chart(), chart().scales.x.min),
    End: () => moveTo(chart(), chart().scales.x.max),
    m: () => toMark(chart(), marks(), true),
    M: () => toMark(chart(), marks(), false),
    "+": () => zoomBy(chart(), 0.5, onZoom),
    "-": () => zoomBy(chart(), 2, onZoom),
    0: () => onZoom(),
  };
  holder.addEventListener("keydown", (event) => {
    const action = actions[event.key];
    if (!action || !chart() || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    action(event);
    onMove();
  });
}
