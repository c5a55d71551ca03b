// What lies under the cursor, in words, beside the cursor; read aloud when the cursor is moved by keys.

import { measured, step as stepText } from "./format.js";
import { FIRST_LAYER } from "./frame.js";
import { marksNear } from "./marks.js";
import { iconElement } from "./theme.js";

function pair(term, value) {
  const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
  dt.textContent = term;
  dd.textContent = value;
  return [dt, dd];
}

function item({ icon, tone, text }) {
  const [li, words] = [document.createElement("li"), document.createElement("span")];
  words.textContent = text;
  li.append(iconElement(icon, tone), words);
  return li;
}

/** Values at row `row`: [[label, text]], the step first; nothing where a refused update left its gap. */
function reading(row, charts) {
  const step = charts[0].frame.data[0][row];
  if (step === undefined || !Number.isInteger(step)) return [];
  const value = ({ frame }) => frame.notFinite.find((point) => point.step === step)?.value ?? frame.data[1][row];
  const abandoned = ({ frame, label }) =>
    frame.data.slice(FIRST_LAYER).flatMap((layer) => (layer[row] == null ? [] : [[`${label}, abandoned`, measured(layer[row])]]));
  const values = charts.flatMap((chart) => [[chart.label, measured(value(chart))], ...abandoned(chart)]);
  return [["Step", stepText(step)], ...values];
}

/** A tooltip in `holder`; `show(chart, row)` and `hide()` move it, `words` tells what it says. */
export function makeTooltip(holder, charts, marks) {
  const box = document.createElement("div");
  box.className = "tooltip";
  box.hidden = true;
  holder.append(box);

  function place(left, width) {
    const free = holder.clientWidth - width;
    box.style.transform = `translateX(${Math.max(4, left + width + 24 > holder.clientWidth ? Math.min(left - width - 16, free) : left + 16)}px)`;
  }

  return {
    show(chart, row) {
      const values = reading(row, charts());
      const near = marksNear(chart, marks(), chart.cursor.left).slice(0, 4);
      box.hidden = !values.length && !near.length;
      if (box.hidden) return;
      const [list, notes] = [document.createElement("dl"), document.createElement("ul")];
      list.append(...values.flatMap(([term, value]) => pair(term, value)));
      notes.append(...near.map(item));
      box.replaceChildren(list, ...(near.length ? [notes] : []));
      place(chart.cursor.left + chart.over.offsetLeft, box.offsetWidth);
    },
    hide() {
      box.hidden = true;
    },
    words: () => [...box.querySelectorAll("dt, dd, li")].map((part) => part.textContent).join(" "),
  };
}
