// The gradient's norm by module and step as a heat map, in step with the charts above it.

import uPlot from "./vendor/uPlot.esm.js";
import { ask } from "./ask.js";
import { measured, step as stepText } from "./format.js";
import { colours, mix } from "./theme.js";

const ROW = 15;
const DECADES = 5;
const WIDEST_NAME = 23;
/** Steps between measurements in the trainer: so much fewer cells than steps. */
const MEASURED_EVERY = 20;

/** Names without the part that all have in common; the rest is cut in the middle where it is long. */
export function shortNames(names) {
  const split = names.map((name) => name.split("."));
  let common = 0;
  while (split.length > 1 && split.every((parts) => parts.length > common + 1 && parts[common] === split[0][common])) common++;
  return split.map((parts) => {
    const name = parts.slice(common).join(".");
    return name.length > WIDEST_NAME ? `${name.slice(0, 10)}…${name.slice(-12)}` : name;
  });
}

/** Buckets of the API as cells [{from, to, value}]; the largest norm of a bucket is the one that matters. */
function cells({ step_from, step_to, max, nonfinite }) {
  const gaps = step_from.slice(1).map((step, row) => step - step_from[row]).sort((one, other) => one - other);
  const usual = gaps[gaps.length >> 1] ?? step_to[0] - step_from[0] + 1;
  return step_from.map((from, row) => {
    const next = step_from[row + 1];
    const to = next !== undefined && next - from <= 2 * usual ? next : Math.max(from + usual, step_to[row] + 1);
    return { from, to, value: nonfinite[row] ? NaN : max[row] };
  });
}

/** Where a norm lies between the faintest colour (0) and the strongest (1). */
function scaleOf(rows) {
  const logs = rows.flat().map(({ value }) => Math.log10(value)).filter(Number.isFinite);
  const high = logs.length ? Math.max(...logs) : 0;
  const low = Math.max(Math.min(high, ...logs), high - DECADES);
  const share = (value) => (high > low ? Math.min(1, Math.max(0, (Math.log10(value) - low) / (high - low))) : 0.5);
  return { low: 10 ** low, high: 10 ** high, share };
}

function paint(ramp, share) {
  return share < 0.5 ? mix(ramp[0], ramp[1], share * 2) : mix(ramp[1], ramp[2], share * 2 - 1);
}

function drawCell(ctx, cell, colour, [left, top, width, height], bad) {
  ctx.fillStyle = Number.isNaN(cell.value) ? bad : colour;
  ctx.fillRect(left, top, width, height);
  if (!Number.isNaN(cell.value)) return;
  ctx.beginPath(); // not by colour alone: a stroke across
  ctx.moveTo(left, top + height);
  ctx.lineTo(left + width, top);
  ctx.stroke();
}

/** The heat map in `holder`; `range`, `group`, `onZoom` as for drawChart, `says(text)` hears what the cursor is on. */
export class HeatMap {
  #holder; #options; #plot = null; #rows = []; #names = []; #asked = ""; #grownTo = -1; #tip;

  constructor(holder, options) {
    this.#holder = holder;
    this.#options = options;
    this.#tip = Object.assign(document.createElement("div"), { className: "tooltip", hidden: true });
    new ResizeObserver(() => this.#plot?.setSize(this.#size())).observe(holder);
  }

  get plot() {
    return this.#plot;
  }

  /** Bring it up to the story; asks only where the view has changed or the run has grown by a hundredth. */
  async update(story, zoom) {
    if (!story.modules.length) return;
    document.getElementById("modules").hidden = false;
    const most = Math.max(60, Math.round(this.#holder.clientWidth / 4));
    const span = Math.ceil(zoom ? zoom[1] - zoom[0] : story.step ?? 0) + 1;
    const buckets = span <= most * MEASURED_EVERY ? Math.max(1, span) : most; // exact, as long as cells are few
    const view = JSON.stringify([story.modules, story.attempts, zoom, most]);
    const hasGrown = !zoom && (story.step ?? 0) - this.#grownTo > Math.max(10, (story.step ?? 0) / 100);
    if (view === this.#asked && !hasGrown) return this.#plot?.redraw(false, true);
    const range = zoom ? [["from_step", Math.max(0, Math.floor(zoom[0]))], ["to_step", Math.ceil(zoom[1])]] : [];
    const query = new URLSearchParams([...story.modules.map((name) => ["name", name]), ["attempt", "effective"], ["buckets", buckets], ...range]);
    const answer = await (await ask(`/api/v1/runs/${encodeURIComponent(story.run)}/series?${query}`)).json();
    [this.#asked, this.#grownTo] = [view, story.step ?? 0];
    this.#names = story.modules.map((name) => name.replace("grad_norm/", ""));
    this.#rows = story.modules.map((name) => cells(answer.series[name]));
    this.draw();
  }

  draw() {
    if (!this.#names.length) return;
    this.#plot?.destroy();
    const palette = colours();
    const scale = scaleOf(this.#rows);
    const x = [...new Set(this.#rows.flatMap((row) => row.map(({ from }) => from)))].sort((one, other) => one - other);
    this.#holder.style.height = `${this.#names.length * ROW + 28}px`;
    this.#plot = new uPlot(this.#config(palette, scale), [x, x.map(() => null)], this.#holder);
    this.#holder.append(this.#tip);
    this.#holder.dataset.cells = this.#rows.reduce((sum, row) => sum + row.length, 0);
    this.#holder.dataset.notFinite = this.#rows.flat().filter(({ value }) => Number.isNaN(value)).length;
    this.#legend(palette, scale);
  }

  #size() {
    return { width: this.#holder.clientWidth, height: this.#names.length * ROW + 28 };
  }

  #config(palette, scale) {
    const { range, group, onZoom, gutter } = this.#options;
    const names = shortNames(this.#names);
    const select = (plot) => {
      if (plot.select.width < 4) return;
      const edges = [plot.select.left, plot.select.left + plot.select.width].map((edge) => plot.posToVal(edge, "x"));
      plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
      onZoom(...edges);
    };
    const text = { stroke: palette.quiet, font: `11px ${getComputedStyle(document.body).fontFamily}`, grid: { show: false }, ticks: { show: false } };
    const wide = gutter() > 100;
    return {
      ...this.#size(),
      padding: [4, 24, 0, 0],
      legend: { show: false },
      cursor: { sync: { key: group, scales: ["x", null] }, drag: { x: true, y: false, setScale: false }, points: { show: false }, bind: { dblclick: () => () => onZoom() } },
      scales: { x: { time: false, auto: false, range: () => range() }, y: { auto: false, dir: -1, range: () => [0, names.length] } },
      axes: [
        { ...text, size: 24, values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? stepText(tick) : "")) },
        { ...text, size: gutter(), gap: 8, splits: () => names.map((_, row) => row + 0.5), values: () => (wide ? names : names.map(() => "")) },
      ],
      series: [{}, { show: false }],
      hooks: { draw: [(plot) => this.#draw(plot, palette, scale)], setSelect: [select], setCursor: [(plot) => this.#follow(plot)] },
    };
  }

  #draw(plot, palette, scale) {
    const { ctx } = plot;
    const ramp = [palette["heat-low"], palette["heat-middle"], palette["heat-high"]];
    const { left, top, width, height } = plot.bbox;
    ctx.save();
    ctx.beginPath();
    ctx.rect(left, top, width, height);
    ctx.clip();
    ctx.strokeStyle = palette.surface;
    ctx.lineWidth = devicePixelRatio;
    this.#rows.forEach((row, at) => {
      const [above, below] = [plot.valToPos(at, "y", true), plot.valToPos(at + 1, "y", true)];
      for (const cell of row) {
        const [from, to] = [plot.valToPos(cell.from, "x", true), plot.valToPos(cell.to, "x", true)];
        if (to < left || from > left + width) continue;
        const box = [Math.floor(from), Math.round(above), Math.max(1, Math.ceil(to) - Math.floor(from)), Math.round(below) - Math.round(above) - 1];
        drawCell(ctx, cell, paint(ramp, scale.share(cell.value)), box, palette.bad);
      }
    });
    ctx.restore();
  }

  #legend(palette, scale) {
    const canvas = document.getElementById("heat-scale");
    const ctx = canvas.getContext("2d");
    const ramp = [palette["heat-low"], palette["heat-middle"], palette["heat-high"]];
    for (let x = 0; x < canvas.width; x++) {
      ctx.fillStyle = paint(ramp, x / (canvas.width - 1));
      ctx.fillRect(x, 0, 1, canvas.height);
    }
    document.getElementById("heat-low").textContent = `≤ ${measured(scale.low)}`;
    document.getElementById("heat-high").textContent = measured(scale.high);
  }

  /** What lies under the cursor, in words. */
  reading() {
    const plot = this.#plot;
    if (!plot || plot.cursor.left < 0) return "";
    const row = Math.min(Math.max(Math.floor(plot.posToVal(Math.max(plot.cursor.top, 0), "y")), 0), this.#rows.length - 1);
    const step = plot.posToVal(plot.cursor.left, "x");
    const cell = this.#rows[row].find(({ from, to }) => from <= step && step < to);
    return cell ? `${this.#names[row]}, step ${stepText(cell.from)}: ${measured(Number.isNaN(cell.value) ? "NaN" : cell.value)}` : "";
  }

  /** Move the cursor up or down by `rows`, for keys. */
  move(rows) {
    const { left, top } = this.#plot.cursor;
    const height = this.#plot.over.clientHeight;
    this.#plot.setCursor({ left: Math.max(left, 0), top: Math.min(Math.max(top + rows * ROW, ROW / 2), height - ROW / 2) });
  }

  #follow(plot) {
    const isHere = this.#holder.matches(":hover, :focus");
    const words = isHere ? this.reading() : "";
    this.#tip.hidden = !words;
    if (!words) return;
    this.#tip.textContent = words;
    const free = this.#holder.clientWidth - this.#tip.offsetWidth - 4;
    this.#tip.style.transform = `translate(${Math.max(4, Math.min(plot.cursor.left + plot.over.offsetLeft + 16, free))}px, ${Math.max(0, plot.cursor.top + 12)}px)`;
  }
}
