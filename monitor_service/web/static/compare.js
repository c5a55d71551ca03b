// The page of several runs: their lines over each other, on one grid of steps.

import { ask } from "./ask.js";
import { canBeLog, drawChart } from "./chart.js";
import { isNotFinite, measured, step as stepText } from "./format.js";
import { answerKeys } from "./keys.js";
import { keepLive } from "./live.js";
import { fillTable } from "./numbers_table.js";
import { onThemeChange } from "./theme.js";

const DASHES = [[], [8, 3], [3, 3], [10, 3, 2, 3]];
const byId = (id) => document.getElementById(id);
const readStory = () => JSON.parse(byId("story").textContent);

let story = readStory();
let shown = "";
let zoom = null;
const charts = [...document.querySelectorAll(".chart")].map((holder) => ({ holder, name: holder.dataset.series, lines: [], plot: null }));

/** Lines of one series: {run, frame: {data: [x, line], notFinite}}, all on the middles of the cells. */
function linesOf({ grid, series }, name) {
  const x = grid.step_from.map((from, cell) => Math.floor((from + grid.step_to[cell]) / 2));
  return story.runs.map((run) => {
    const { cell = [], last = [], nonfinite = [] } = series[name][run] ?? {};
    const line = x.map(() => undefined);
    const notFinite = [];
    cell.forEach((at, row) => {
      const value = nonfinite[row] && !isNotFinite(last[row]) ? "NaN" : last[row];
      line[at] = isNotFinite(value) ? null : value;
      if (line[at] === null) notFinite.push({ step: x[at], value });
    });
    return { run, frame: { data: [x, line], notFinite } };
  });
}

/** What uPlot draws for each run, in the colour and dash of its swatch. */
function look() {
  const style = getComputedStyle(document.documentElement);
  const line = (run, at) => ({
    label: run, stroke: style.getPropertyValue(`--run-${at + 1}`).trim(), width: 1.5, dash: DASHES[at % DASHES.length], spanGaps: false,
    points: { show: false },
  });
  return { series: [{}, ...story.runs.map(line)], bands: [] };
}

const marksOf = ({ lines }) =>
  lines.flatMap(({ run, frame }) =>
    frame.notFinite.map(({ step, value }) => ({ kind: "not_finite", icon: "cross", tone: "bad", step, text: `${run} is ${measured(value)} here.` })),
  );

function range() {
  const x = charts[0].lines[0].frame.data[0];
  return zoom ?? (x.length > 1 ? [x[0], x.at(-1)] : [(x[0] ?? 0) - 1, (x[0] ?? 0) + 1]);
}

function setZoom(first, last) {
  zoom = first === undefined || last - first < 2 ? null : [Math.max(0, first), last];
  charts.forEach(draw);
}

function draw(chart) {
  chart.plot?.destroy();
  const data = [chart.lines[0].frame.data[0], ...chart.lines.map(({ frame }) => frame.data[1])];
  chart.plot = drawChart({
    holder: chart.holder, frame: { data }, look, log: canBeLog(data), group: "compare", gutter: 58, range,
    marks: () => marksOf(chart),
    onZoom: setZoom,
    onCursor: () => chart.holder.matches(":hover") && tell(chart),
  });
  chart.holder.querySelector(".message").hidden = true;
  chart.holder.uplot = chart.plot;
  chart.holder.dataset.drawnAfterMs ??= Math.round(performance.now());
}

/** What lies under the cursor, in words. */
function reading({ plot, lines }) {
  const row = plot.cursor.idx;
  if (row == null) return "\u00a0";
  const values = lines.map(({ run, frame }) => `${run} ${measured(frame.data[1][row])}`);
  return `Step ${stepText(lines[0].frame.data[0][row])}: ${values.join(", ")}`;
}

const tell = (chart) => (byId("reading").textContent = reading(chart));

function tabulate() {
  const stride = fillTable(byId("numbers-rows"), charts.flatMap(({ lines }) => lines), []);
  byId("numbers-caption").textContent = stride > 1 ? `One row for every ${stride} points of the charts.` : "Every point of the charts.";
}

async function refresh() {
  story = readStory();
  const view = JSON.stringify(story);
  if (view === shown || !charts.length) return;
  const query = new URLSearchParams([...story.runs.map((run) => ["run", run]), ...story.series.map((name) => ["name", name]), ["buckets", story.cells]]);
  const told = await (await ask(`/api/v1/compare?${query}`)).json();
  shown = view;
  for (const chart of charts) chart.lines = linesOf(told, chart.name);
  charts.forEach(draw);
  if (byId("numbers").open) tabulate();
}

for (const chart of charts) {
  answerKeys({
    holder: chart.holder,
    chart: () => chart.plot,
    marks: () => marksOf(chart),
    onZoom: setZoom,
    onMove: () => tell(chart),
  });
  new ResizeObserver(() => chart.plot?.setSize({ width: chart.holder.clientWidth, height: chart.holder.clientHeight })).observe(chart.holder);
}
byId("numbers")?.addEventListener("toggle", tabulate);
onThemeChange(() => charts.forEach((chart) => chart.plot && draw(chart)));
keepLive({ stream: "/api/v1/stream", then: refresh, hasEnded: () => story.is_over });
