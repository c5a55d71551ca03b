// Colours and shapes for the canvas, read from the page, so that chart and legend cannot differ.

const TONES = ["ok", "note", "warn", "bad", "back", "idle"];
const PLAIN = ["accent", "text", "quiet", "line", "line-strong", "surface", "heat-low", "heat-middle", "heat-high"];

/** The present colours (light or dark) by their names in base.css. */
export function colours() {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries([...TONES, ...PLAIN].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

/** `colour` (#rrggbb) at an opacity of `alpha`. */
export const faint = (colour, alpha) => colour + Math.round(alpha * 255).toString(16).padStart(2, "0");

const channels = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

/** The colour between two (#rrggbb) at `share` of the way from the first to the second. */
export function mix(one, other, share) {
  const [from, to] = [channels(one), channels(other)];
  return `rgb(${from.map((value, at) => Math.round(value + (to[at] - value) * share)).join(" ")})`;
}

const shapes = new Map();

/** The outline of an icon as a canvas path in a box of 16 x 16, from the page's own <symbol>. */
export function shape(icon) {
  if (!shapes.has(icon)) {
    const path = document.querySelector(`#icon-${icon} path`);
    shapes.set(icon, new Path2D(path ? path.getAttribute("d") : "M4 4h8v8H4z"));
  }
  return shapes.get(icon);
}

/** The same icon as an element for a tooltip. */
export function iconElement(icon, tone) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("class", `icon tone-${tone}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS(space, "use"));
  svg.firstChild.setAttribute("href", `#icon-${icon}`);
  return svg;
}

/** Call `redraw` when the reader's light or dark setting changes. */
export function onThemeChange(redraw) {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}
