// The page of one run: charts that share cursor and zoom, kept fresh while the run is open.

import { canBeLog, drawChart } from "./chart.js";
import { frames } from "./frame.js";
import { measured } from "./format.js";
import { HeatMap } from "./heat.js";
import { answerKeys } from "./keys.js";
import { keepLive } from "./live.js";
import { countByKind } from "./marks.js";
import { fillTable } from "./numbers_table.js";
import { SeriesStore } from "./series.js";
import { onThemeChange } from "./theme.js";
import { makeTooltip } from "./tooltip.js";

const readStory = () => JSON.parse(document.getElementById("story").textContent);
const byId = (id) => document.getElementById(id);

let story = readStory();
let zoom = story.focus ?? null;
const store = new SeriesStore(story.run);
const charts = [...document.querySelectorAll(".chart")].map((holder) => ({
  holder, name: holder.dataset.series, label: holder.dataset.label, minor: holder.classList.contains("minor"), log: true, frame: null, plot: null,
}));
const major = charts.filter(({ minor }) => !minor);
const drawn = () => major.filter(({ frame }) => frame);

/** The steps to show: the zoom, or from the first point to the last point or mark. */
function range() {
  if (zoom) return zoom;
  const x = charts[0].frame.data[0];
  const steps = [x[0], x.at(-1), ...story.marks.map(({ step }) => step)].filter((step) => step !== undefined);
  const [first, last] = [Math.min(...steps), Math.max(...steps)];
  return first < last ? [first, last] : [first - 1, last + 1];
}

/** Space left of the charts: as wide as the names of modules, where there are some and it can be spared. */
const gutter = () => (story.modules.length && charts[0].holder.clientWidth > 640 ? 164 : 58);

const marksOf = ({ frame }) => [
  ...story.marks,
  ...frame.notFinite.map(({ step, value }) => ({
    kind: "not_finite", icon: "cross", tone: "bad", step, text: `The value at this step is ${measured(value)}.`,
  })),
];

function draw(chart) {
  chart.plot?.destroy();
  const canLog = canBeLog(chart.frame.data);
  chart.plot = drawChart({
    ...chart, log: chart.log && canLog, group: story.run, gutter: gutter(), range,
    marks: () => (chart.minor ? [] : marksOf(chart)),
    onZoom: setZoom,
    onCursor: (plot) => follow(chart, plot),
  });
  chart.holder.uplot = chart.plot;
  for (const button of document.querySelectorAll(`[data-scale-of="${chart.name}"] button`)) {
    button.disabled = !canLog && button.value === "log";
    button.setAttribute("aria-pressed", String((button.value === "log") === (chart.log && canLog)));
  }
}

/** Counts for tests and for those who look: what is on the chart, and how many gaps its line has. */
function label(chart) {
  const [, line] = chart.frame.data;
  chart.holder.dataset.marks = JSON.stringify(countByKind(marksOf(chart)));
  chart.holder.dataset.gaps = line.filter((value, row) => value === null && row > 0 && line[row - 1] !== null).length;
  chart.holder.dataset.drawnAfterMs ??= Math.round(performance.now());
}

function show({ anew = false } = {}) {
  const skipped = story.marks.filter(({ kind }) => kind === "skipped");
  const { effective, abandoned } = store.stretches(story.attempts, skipped);
  const all = frames(effective, abandoned, charts.map(({ name }) => name));
  for (const chart of charts) chart.frame = all[chart.name];
  for (const chart of charts) {
    if (chart.minor && !story.series.includes(chart.name)) continue;
    chart.holder.parentElement.hidden = false;
    const message = chart.holder.querySelector(".message");
    message.hidden = chart.frame.data[0].length > 0;
    message.textContent = "No steps yet. The line appears with the first report.";
    if (!message.hidden) continue;
    if (anew || chart.plot?.data.length !== chart.frame.data.length) draw(chart);
    else chart.plot.setData(chart.frame.data);
    label(chart);
  }
  byId("not-finite-legend").hidden = charts.every(({ frame }) => !frame.notFinite.length);
  if (byId("numbers").open) tabulate();
}

function follow(chart, plot) {
  const isHere = chart.holder.matches(":hover") || (chart.holder.matches(":focus") && !document.querySelector(".chart:hover"));
  if (isHere && plot.cursor.left >= 0 && plot.cursor.idx != null) chart.tooltip?.show(plot, plot.cursor.idx);
  else chart.tooltip?.hide();
}

async function setZoom(first, last) {
  zoom = first === undefined || last - first < 2 ? null : [Math.max(0, first), last];
  byId("whole-run").hidden = !zoom;
  await refresh({ always: true });
}

async function refresh({ always = false } = {}) {
  const before = JSON.stringify(story.marks);
  const hadModules = story.modules.length > 0;
  story = readStory();
  if (hadModules !== story.modules.length > 0) show({ anew: true }); // the gutter has changed
  const changed = await store.update(story, zoom, story.points);
  if (changed || always || !charts[0].frame || before !== JSON.stringify(story.marks)) show();
  if (charts[0].frame?.data[0].length) await heat.update(story, zoom);
}

function tabulate() {
  const stride = fillTable(byId("numbers-rows"), drawn(), story.marks.filter(({ kind }) => kind !== "attempt"));
  byId("numbers-caption").textContent = stride > 1 ? `One row for every ${stride} points of the charts.` : "Every point of the charts.";
}

function setUp(chart) {
  chart.tooltip = makeTooltip(chart.holder, drawn, () => marksOf(chart));
  answerKeys({
    holder: chart.holder,
    chart: () => chart.plot,
    marks: () => marksOf(chart),
    onZoom: setZoom,
    onMove: () => (byId("reading").textContent = chart.tooltip.words()),
  });
  new ResizeObserver(() => chart.plot?.setSize({ width: chart.holder.clientWidth, height: chart.holder.clientHeight })).observe(chart.holder);
  chart.holder.addEventListener("blur", () => chart.tooltip.hide());
  document.querySelector(`[data-scale-of="${chart.name}"]`).addEventListener("click", ({ target }) => {
    if (!target.value) return;
    chart.log = target.value === "log";
    draw(chart);
  });
}

const heat = new HeatMap(byId("heat"), { range, group: story.run, onZoom: setZoom, gutter });
answerKeys({
  holder: byId("heat"),
  chart: () => heat.plot,
  marks: () => story.marks,
  onZoom: setZoom,
  onMove: () => (byId("reading").textContent = heat.reading()),
});
byId("heat").addEventListener("keydown", (event) => {
  const rows = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (!rows || !heat.plot) return;
  event.preventDefault();
  heat.move(rows);
  byId("reading").textContent = heat.reading();
});

charts.forEach(setUp);
byId("whole-run").hidden = !zoom;
byId("whole-run").addEventListener("click", () => setZoom());
byId("numbers").addEventListener("toggle", tabulate);
onThemeChange(() => {
  show({ anew: true });
  heat.draw();
});
keepLive({ stream: `/api/v1/runs/${encodeURIComponent(story.run)}/stream`, then: refresh, hasEnded: () => story.is_over });
