// Numbers as a person reads them.

const NOT_FINITE = new Map([["NaN", "NaN"], ["Infinity", "∞"], ["-Infinity", "−∞"]]);

/** Whether a value of the API is one of the three texts that stand for a number that is not finite. */
export const isNotFinite = (value) => NOT_FINITE.has(value);

/** A measured value: four digits that count; "NaN" and infinities as they are; "–" where there is none. */
export function measured(value) {
  if (value == null) return "–";
  if (isNotFinite(value)) return NOT_FINITE.get(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(2).replace("e+", "e").replace("-", "−");
  return value.toLocaleString("en", { maximumSignificantDigits: 4 }).replace("-", "−");
}

/** A step number with thin groups: 12,000. */
export const step = (value) => Math.round(value).toLocaleString("en");
