// The run's series, asked from the monitor: at most one point a pixel, only what is new, and what was abandoned.

import { ask } from "./ask.js";

/** Late batches may fill in steps before the last one, so now and then all is asked for again. */
const ALL_AGAIN_EVERY = 15;

async function askSeries(run, { names, ...rest }) {
  const query = new URLSearchParams([...names.map((name) => ["name", name]), ...Object.entries(rest)]);
  const answer = await ask(`/api/v1/runs/${encodeURIComponent(run)}/series?${query}`);
  return toLines((await answer.json()).series);
}

/** The API's buckets as a line with its band; a bucket of one step has no band, one with a NaN is no number. */
function toLine({ step_from, step_to, min, max, last, nonfinite }) {
  const wide = (row) => step_to[row] > step_from[row];
  return {
    step: step_from.map((from, row) => Math.floor((from + step_to[row]) / 2)),
    line: last.map((value, row) => (nonfinite[row] && typeof value === "number" ? "NaN" : value)),
    low: min.map((value, row) => (wide(row) ? value : null)),
    high: max.map((value, row) => (wide(row) ? value : null)),
    isExact: !step_from.some((_, row) => wide(row)),
  };
}

const toLines = (answer) => Object.fromEntries(Object.entries(answer).map(([name, columns]) => [name, toLine(columns)]));

/** The step at which each attempt was abandoned, for those that were: [[attempt, from_step]]. */
function abandonedFrom(attempts) {
  return attempts.flatMap(({ attempt }) => {
    const later = attempts.filter((other) => other.attempt > attempt).map((other) => other.start_step);
    return later.length ? [[attempt, Math.min(...later)]] : [];
  });
}

const lastStep = (lines) => Math.max(-1, ...Object.values(lines).map(({ step }) => step.at(-1) ?? -1));

const append = (line, tail) =>
  Object.fromEntries(["step", "line", "low", "high"].map((part) => [part, line[part].concat(tail[part])]));

/** Keeps the points of one run that a page of `points` points shows. */
export class SeriesStore {
  #run;
  #abandoned = new Map();
  #lines = {};
  #shown = "";
  #isExact = false;
  #last = -1;
  #looks = 0;

  constructor(run) {
    this.#run = run;
  }

  /** Bring the points up to `story`; `zoom` is [first, last] or null for all. Answers whether anything changed. */
  async update(story, zoom, points) {
    const names = story.series;
    if (!names.length) return false;
    const shown = JSON.stringify([names, story.attempts, zoom, points]);
    if (shown !== this.#shown) {
      await this.#askAll(names, zoom, points);
      await this.#askAbandoned(story, names, points);
      this.#shown = shown;
      return true;
    }
    return zoom ? false : this.#askNew(story, names, points);
  }

  /** Stretches as frame.js wants them: {effective, abandoned[]}. */
  stretches(attempts, skipped) {
    const limits = new Map(abandonedFrom(attempts));
    const isAbandoned = ({ attempt, step }) => step >= (limits.get(attempt) ?? Infinity);
    const gaps = (wanted) => skipped.filter(wanted).map(({ step }) => step);
    return {
      effective: { series: this.#lines, gaps: gaps((mark) => !isAbandoned(mark)) },
      abandoned: [...limits.keys()].map((attempt) => ({
        series: this.#abandoned.get(attempt)?.lines ?? {},
        gaps: gaps((mark) => isAbandoned(mark) && mark.attempt === attempt),
      })),
    };
  }

  async #askAll(names, zoom, points) {
    const range = zoom ? { from_step: Math.max(0, Math.floor(zoom[0])), to_step: Math.ceil(zoom[1]) } : {};
    this.#take(await askSeries(this.#run, { names, attempt: "effective", buckets: points, ...range }));
  }

  #take(lines) {
    this.#lines = lines;
    this.#isExact = Object.values(lines).every((line) => line.isExact);
    this.#last = lastStep(lines);
  }

  /** Abandoned stretches do not change any more, so each is asked for once. */
  async #askAbandoned({ attempts }, names, points) {
    for (const [attempt, from] of abandonedFrom(attempts)) {
      if (this.#abandoned.get(attempt)?.from === from) continue;
      const lines = await askSeries(this.#run, { names, attempt, from_step: from, buckets: points });
      this.#abandoned.set(attempt, { from, lines });
    }
  }

  /** While each point is one step only the tail is asked for; else all, once it has grown by half a percent. */
  async #askNew(story, names, points) {
    const grown = (story.step ?? -1) - this.#last;
    if (grown <= 0) return false;
    const isCoarse = !this.#isExact || story.step > points;
    if (isCoarse && grown < story.step / 200) return false;
    if (isCoarse || ++this.#looks % ALL_AGAIN_EVERY === 0) {
      await this.#askAll(names, null, points);
      return true;
    }
    const query = { names, attempt: "effective", from_step: this.#last + 1, buckets: points };
    const tail = await askSeries(this.#run, query);
    for (const name of Object.keys(tail)) this.#lines[name] = append(this.#lines[name] ?? tail[name], tail[name]);
    this.#last = lastStep(this.#lines);
    return true;
  }
}
