// The charts' numbers as a table, for screen readers and for those who want the number itself.

import { measured, step as stepText } from "./format.js";

const MOST_ROWS = 400;

function cell(tag, text, number = true) {
  const element = document.createElement(tag);
  element.textContent = text;
  if (number) element.className = "number";
  if (tag === "th") element.scope = "row";
  return element;
}

function valueRow(row, charts) {
  const step = charts[0].frame.data[0][row];
  const values = charts.map(({ frame }) => frame.notFinite.find((point) => point.step === step)?.value ?? frame.data[1][row]);
  if (!Number.isInteger(step) || values.every((value) => value == null)) return null;
  const line = document.createElement("tr");
  line.append(cell("th", stepText(step)), ...values.map((value) => cell("td", measured(value))), cell("td", "", false));
  return line;
}

function markRow(mark, columns) {
  const line = document.createElement("tr");
  const blanks = Array.from({ length: columns }, () => cell("td", "–"));
  const words = cell("td", mark.text, false);
  words.className = "words";
  line.append(cell("th", stepText(mark.step)), ...blanks, words);
  return line;
}

/** Rows for `body`: at most 400 values, evenly thinned, and every mark at its step. Answers how many rows a row stands for. */
export function fillTable(body, charts, marks) {
  const x = charts[0].frame.data[0];
  const stride = Math.max(1, Math.ceil(x.length / MOST_ROWS));
  const told = [...marks].sort((one, other) => one.step - other.step);
  const rows = [];
  for (let row = 0; row < x.length; row += stride) {
    while (told.length && told[0].step <= x[row]) rows.push(markRow(told.shift(), charts.length));
    const values = valueRow(row, charts);
    if (values) rows.push(values);
  }
  body.replaceChildren(...rows, ...told.map((mark) => markRow(mark, charts.length)));
  return stride;
}
