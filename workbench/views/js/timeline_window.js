// What part of the run the timeline shows, and how columns lie on its pixels.
import { stepAxis, timeAxis, wholeOf } from "./span_axis.js";

/** Take the axis that the view is set to, and keep the window unless the axis is another one. */
export function setAxis(view) {
  const { run } = view;
  if (!run) return;
  const name = view.axisName;
  const changed = view.axis && view.axis.unit !== name;
  view.axis = name === "ms" ? timeAxis(run.columns, view.parts) : stepAxis(run.count);
  if (changed) view.fixed = null;
  view.window = view.fixed ?? wholeOf(view.axis);
  for (const [unit, made] of Object.entries(view.axisButtons))
    made.setAttribute("aria-pressed", String(unit === name));
}

/** window: null for the whole run, which then goes on growing with it. */
export function setWindow(view, window) {
  if (!view.axis) return;
  const [first, last] = wholeOf(view.axis);
  view.fixed = window && window[1] - window[0] < (last - first) * 0.999 ? window : null;
  view.window = view.fixed ?? [first, last];
  view.panel.ask();
}

export function middle(view, column) {
  return (view.axis.left[column] + view.axis.right[column]) / 2;
}

/** column -> [x0, x1, x1 without a gap] in pixels of a plot; scale: device pixels to one. */
export function pixels(view, width, scale) {
  const { axis, window } = view;
  const factor = (width * scale) / (window[1] - window[0]);
  const usual = ((axis.right[axis.right.length - 1] - axis.left[0]) / axis.left.length) * factor;
  const gap = usual >= 5 * scale ? Math.max(1, Math.round(scale)) : 0;
  return (column) => {
    const x0 = Math.round((axis.left[column] - window[0]) * factor);
    const end = Math.max(x0 + 1, Math.round((axis.right[column] - window[0]) * factor));
    return [x0, Math.max(x0 + 1, end - gap), end];
  };
}
