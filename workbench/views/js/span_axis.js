// Where steps lie on a horizontal axis, in steps or in milliseconds, and what part of it is seen.
import { upperBound } from "./buffers.js";

const LEAST_STEPS = 4; // never zoom in closer

/** left[c], right[c]: where column c begins and ends; unit: what the numbers are. */
export function stepAxis(count) {
  const left = Float64Array.from({ length: count }, (_, column) => column);
  return { unit: "steps", left, right: left.map((at) => at + 1), least: LEAST_STEPS };
}

/** The same in milliseconds from the start of the first step. */
export function timeAxis({ step_end, ...columns }, parts) {
  const count = step_end.length;
  const [left, right] = [new Float64Array(count), new Float64Array(count)];
  const used = parts.map((part) => columns[`step_${part}`]);
  const began = (c) => step_end[c] - used.reduce((sum, part) => sum + part[c], 0);
  const zero = count ? began(0) : 0;
  for (let c = 0; c < count; c++) {
    right[c] = (step_end[c] - zero) * 1e3;
    // clocks of two kinds: a step never begins before the one before it has ended
    left[c] = Math.max((began(c) - zero) * 1e3, c ? right[c - 1] : 0);
    right[c] = Math.max(right[c], left[c] + 1e-6);
  }
  const usual = count ? right[count - 1] / count : 1;
  return { unit: "ms", left, right, least: usual * LEAST_STEPS, zero };
}

/** The whole axis as a window [from, to]. */
export function wholeOf(axis) {
  return [0, Math.max(axis.right[axis.right.length - 1] ?? 0, axis.least)];
}

/** A window zoomed by a factor (below 1: closer) so that `at` stays where it is. */
export function zoomed([from, to], factor, at, axis) {
  const [first, last] = wholeOf(axis);
  const span = Math.min(last - first, Math.max(axis.least, (to - from) * factor));
  const share = (at - from) / (to - from);
  return kept([at - share * span, at - share * span + span], axis);
}

/** A window moved by a distance, within the axis. */
export function panned([from, to], distance, axis) {
  return kept([from + distance, to + distance], axis);
}

/** A window moved just so far that column `column` is inside. */
export function showing(window, column, axis) {
  const [from, to] = window;
  if (column < 0 || column >= axis.left.length) return window;
  const margin = (to - from) * 0.05;
  if (axis.left[column] < from) return kept([axis.left[column] - margin, axis.left[column] - margin + to - from], axis);
  if (axis.right[column] > to) return kept([axis.right[column] + margin - to + from, axis.right[column] + margin], axis);
  return window;
}

function kept([from, to], axis) {
  const [first, last] = wholeOf(axis);
  const span = Math.min(to - from, last - first);
  const begin = Math.min(Math.max(from, first), last - span);
  return [begin, begin + span];
}

/** The columns that a window shows a part of, as [from, to). */
export function columnsIn([from, to], axis) {
  const begin = upperBound(axis.right, from);
  let end = upperBound(axis.left, to);
  if (end && axis.left[end - 1] === to) end--;
  return [Math.min(begin, end), end];
}

/** The column at a place of the axis; the nearest one in a gap, -1 where there is none. */
export function columnNear(at, axis) {
  const count = axis.left.length;
  if (!count) return -1;
  const found = Math.max(0, upperBound(axis.left, at) - 1);
  if (found + 1 < count && at > axis.right[found])
    return at - axis.right[found] > axis.left[found + 1] - at ? found + 1 : found;
  return found;
}

/** Round numbers from `low` to `high`, about `count` of them. */
export function ticks(low, high, count, whole = false) {
  const span = high - low;
  if (!(span > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(span / count));
  let stride = power * [1, 2, 5, 10].find((step) => power * step >= (span / count) * 0.999);
  if (whole) stride = Math.max(1, Math.round(stride));
  const found = [];
  for (let k = Math.ceil(low / stride - 1e-9); k * stride <= high + stride * 1e-9; k++)
    found.push(Number((k * stride).toPrecision(12)));
  return found;
}

/** The least round number (1, 2, 5 and tens of them) that is not below a value. */
export function roundUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return Number((power * [1, 1.5, 2, 3, 5, 7.5, 10].find((step) => power * step >= value * 0.9999)).toPrecision(3));
}

/** A number in a few characters. */
export function brief(value, unit = "") {
  const digits = Math.abs(value) >= 100 || Number.isInteger(value) ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  const text = value !== 0 && Math.abs(value) < 0.01 ? value.toPrecision(1) : value.toFixed(digits);
  return unit ? `${text} ${unit}` : text;
}
