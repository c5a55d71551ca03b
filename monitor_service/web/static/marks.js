// What happened, drawn on a chart: marks stand in lanes above and below the lines, never on them.
//
// A mark is {kind, icon, tone, step, to_step, text}. Kinds and their lanes: "finding" (upper lane), "skipped" and
// "not_finite" (top edge), "rollback" (a shaded stretch with an arrow back), "attempt" (a thin line),
// "checkpoint" (below the steps).

import { colours, faint, shape } from "./theme.js";

const ICON = 11;
/** Space that the lanes take, in CSS pixels. */
export const LANES = { above: 40, below: 18 };
const UPPER_LANE = 9;
const TOP_EDGE = 27;

/** Context of one drawing: where a step lies, the plot's box, and how many device pixels one CSS pixel has. */
function scene(chart, palette) {
  const { left, top, width, height } = chart.bbox;
  const ratio = devicePixelRatio;
  return {
    ctx: chart.ctx, ratio, halo: palette.surface, left, top, right: left + width, bottom: top + height,
    x: (step) => chart.valToPos(step, "x", true),
    holds: (step) => step >= chart.scales.x.min && step <= chart.scales.x.max,
  };
}

function drawIcon({ ctx, ratio, halo }, icon, colour, x, y) {
  const scale = (ICON * ratio) / 16;
  ctx.save();
  ctx.translate(x - 8 * scale, y - 8 * scale);
  ctx.scale(scale, scale);
  ctx.lineJoin = "round";
  ctx.lineWidth = 5;
  ctx.strokeStyle = halo;
  ctx.stroke(shape(icon)); // keeps marks apart that stand close together
  ctx.fillStyle = colour;
  ctx.fill(shape(icon), "evenodd");
  ctx.restore();
}

function drawUpright({ ctx, ratio, top, bottom }, x, colour, dash = []) {
  ctx.beginPath();
  ctx.setLineDash(dash.map((length) => length * ratio));
  ctx.lineWidth = ratio;
  ctx.strokeStyle = colour;
  ctx.moveTo(x, top);
  ctx.lineTo(x, bottom);
  ctx.stroke();
  ctx.setLineDash([]);
}

function drawRollback(view, mark, palette) {
  const { ctx, ratio, top, bottom, left, right } = view;
  const [from, to] = [mark.step, mark.to_step].map((step) => Math.min(Math.max(view.x(step), left), right));
  if (from <= left || to >= right) return;
  const colour = palette[mark.tone];
  ctx.fillStyle = faint(colour, 0.08);
  ctx.fillRect(to, top, from - to, bottom - top);
  drawUpright(view, from, colour);
  drawUpright(view, to, faint(colour, 0.6), [3, 3]);
  const y = top + 9 * ratio;
  const head = 5 * ratio;
  ctx.beginPath();
  ctx.moveTo(from, y);
  ctx.lineTo(to, y);
  ctx.moveTo(to + head, y - head);
  ctx.lineTo(to, y);
  ctx.lineTo(to + head, y + head);
  ctx.lineWidth = 1.5 * ratio;
  ctx.strokeStyle = colour;
  ctx.stroke();
  if (view.holds(mark.step)) drawIcon(view, mark.icon, colour, from, TOP_EDGE * ratio);
}

const draw = {
  rollback: drawRollback,
  attempt: (view, mark, palette) => drawUpright(view, view.x(mark.step), palette["line-strong"], [1, 3]),
  finding: (view, mark, palette, aside) =>
    drawIcon(view, mark.icon, palette[mark.tone], view.x(mark.step) - aside, UPPER_LANE * view.ratio),
  skipped: drawAtEdge,
  not_finite: drawAtEdge,
  checkpoint(view, mark, palette) {
    const x = view.x(mark.step);
    const colour = palette[mark.tone];
    view.ctx.fillStyle = colour;
    view.ctx.fillRect(x - view.ratio / 2, view.bottom, view.ratio, 4 * view.ratio);
    drawIcon(view, mark.icon, colour, x, view.bottom + 11 * view.ratio);
  },
};

function drawAtEdge(view, mark, palette) {
  const x = view.x(mark.step);
  drawUpright(view, x, faint(palette[mark.tone], 0.35), [2, 3]);
  drawIcon(view, mark.icon, palette[mark.tone], x, TOP_EDGE * view.ratio);
}

const ORDER = ["attempt", "rollback", "checkpoint", "finding", "skipped", "not_finite"];

/** How far to the left each mark gives way to the one after it: so that close neighbours are both seen. */
function stepAside(view, marks) {
  const aside = new Map();
  let free = Infinity;
  for (const mark of [...marks].sort((one, other) => other.step - one.step)) {
    const x = view.x(mark.step);
    const way = Math.min(Math.max(0, x - free), ICON * view.ratio);
    aside.set(mark, way);
    free = x - way - ICON * view.ratio;
  }
  return aside;
}

const byWeight = (one, other) => (one.tone === "bad") - (other.tone === "bad");

/** Draw `marks` on a uPlot chart, stretches first and points over them, the worst on top. */
export function drawMarks(chart, marks) {
  const palette = colours();
  const view = scene(chart, palette);
  view.ctx.save();
  for (const kind of ORDER) {
    const ofKind = marks.filter((mark) => mark.kind === kind && (kind === "rollback" || view.holds(mark.step)));
    const aside = kind === "finding" ? stepAside(view, ofKind) : new Map();
    for (const mark of ofKind.sort(byWeight)) draw[kind](view, mark, palette, aside.get(mark) ?? 0);
  }
  view.ctx.restore();
}

/** The marks within `reach` CSS pixels of a cursor at `left`, nearest first. */
export function marksNear(chart, marks, left, reach = 7) {
  return marks
    .map((mark) => ({ mark, away: Math.abs(chart.valToPos(mark.step, "x") - left) }))
    .filter(({ away }) => away <= reach)
    .sort((one, other) => one.away - other.away)
    .map(({ mark }) => mark);
}

/** How many marks of each kind there are, for tests and for those who look at the page's source. */
export function countByKind(marks) {
  const counts = {};
  for (const { kind } of marks) counts[kind] = (counts[kind] ?? 0) + 1;
  return counts;
}
