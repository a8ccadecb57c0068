/* Numbers, names and distances for people. */

const SIZES = ["B", "kB", "MB", "GB", "TB"];

export const count = (number) => number.toLocaleString("en-GB");
export const several = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

export function size(bytes) {
  let unit = 0;
  while (Math.abs(bytes) >= 1000 && unit < SIZES.length - 1) [bytes, unit] = [bytes / 1000, unit + 1];
  return `${unit && bytes < 100 ? bytes.toFixed(1) : Math.round(bytes)} ${SIZES[unit]}`;
}

/** Whole numbers (bits) as they are, others with three or four digits. */
export function distance(value) {
  if (value === null || value === undefined) return "";
  if (Number.isInteger(value) || Math.abs(value) >= 1000) return count(Math.round(value));
  return Math.abs(value) < 1 ? value.toFixed(3) : value.toPrecision(4);
}

export const share = (value) => value.toFixed(value === 1 ? 0 : 2);
export const labelOf = (label) => (Array.isArray(label) ? label.join(", ") : (label ?? "").toString());
export const fileOf = (path) => path.split("/").pop();

/** What a person calls an item: its path, else its number. */
export const nameOf = (item) => item.path || `item ${item.id}`;

/** Time of an answer. */
export const milliseconds = (ms) => `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
