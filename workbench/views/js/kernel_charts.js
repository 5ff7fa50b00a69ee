// The playground's two pictures: the space as a heat map, and the roofline.
import { css, mix, rgb, HUES } from "./colours.js";
import { cividis, configKey, MEASURES, cellOf, shareOf } from "./config_space.js";
import { rooflinePoints, roof, roofAt } from "./kernel_figures.js";
import { short } from "./numbers.js";

const FAILED = rgb(HUES[5]);
const PAD = { left: 8, right: 8, top: 22, bottom: 20 };
const ink = (context, theme, name = "faint") => {
  context.font = "11px system-ui, sans-serif";
  context.textBaseline = "middle";
  context.textAlign = "left";
  context.fillStyle = css(theme[name]);
};

/** The box of the grid in a canvas of this size, and a cell's width and height. */
export function gridBox({ width, height }, layout) {
  const inner = [width - PAD.left - PAD.right, height - PAD.top - PAD.bottom];
  const cell = [inner[0] / layout.width, inner[1] / layout.height];
  return { left: PAD.left, top: PAD.top, cell };
}

/** [column, row] under a point of the canvas, null beside the grid. */
export function cellAt(box, layout, x, y) {
  const at = [Math.floor((x - box.left) / box.cell[0]), Math.floor((y - box.top) / box.cell[1])];
  const inside = at[0] >= 0 && at[1] >= 0 && at[0] < layout.width && at[1] < layout.height;
  return inside ? at : null;
}

/**
 * Draw the space: a colour for what was measured, hatching for failures, an outline for what was not
 * tried, nothing for what the kernel's filter keeps out. Returns the box of the grid.
 */
export function drawSpace(made, { layout, configs, trials, taken, measure, selected }, theme) {
  const size = made.fit();
  const { context } = made;
  const box = gridBox(size, layout);
  const { of, title } = MEASURES[measure];
  const values = new Map();
  for (const [key, trial] of trials) {
    const value = trial.status === "ok" ? of(trial, taken(key, trial)) : null;
    if (value !== null) values.set(key, value);
  }
  const known = [...values.values()];
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const gap = Math.min(...box.cell) > 6 ? 1 : 0;
  for (const config of configs) {
    const place = cellOf(layout, config);
    if (!place) continue;
    const [x, y] = [box.left + place[0] * box.cell[0], box.top + place[1] * box.cell[1]];
    const [w, h] = [box.cell[0] - gap, box.cell[1] - gap];
    const key = configKey(config);
    const trial = trials.get(key);
    if (values.has(key)) {
      context.fillStyle = css(cividis(1 - shareOf(values.get(key), low, high)));
      context.fillRect(x, y, w, h);
    } else if (trial && trial.status !== "ok") hatch(context, x, y, w, h, theme);
    else {
      context.fillStyle = css(mix(theme.paper, theme.ink, trial ? 0.25 : 0.08));
      context.fillRect(x, y, w, h);
    }
  }
  const chosen = selected && cellOf(layout, selected);
  if (chosen) {
    context.strokeStyle = css(theme.accent);
    context.lineWidth = 3;
    context.strokeRect(box.left + chosen[0] * box.cell[0], box.top + chosen[1] * box.cell[1], box.cell[0] - gap, box.cell[1] - gap);
  }
  ink(context, theme, "ink");
  const scale = known.length ? `: ${short(low)} (yellow) to ${short(high)} (blue)` : ": nothing yet";
  context.fillText(`${title}${scale}; hatched: failed`, PAD.left, 10);
  ink(context, theme);
  const named = (axes) => axes.map(({ name }) => name).join(" › ") || "one";
  context.fillText(`across: ${named(layout.columns)}   down: ${named(layout.rows)}`, PAD.left, size.height - 9);
  return box;
}

function hatch(context, x, y, w, h, theme) {
  context.save();
  context.beginPath();
  context.rect(x, y, w, h);
  context.clip();
  context.fillStyle = css(mix(theme.paper, FAILED, 0.25));
  context.fillRect(x, y, w, h);
  context.strokeStyle = css(FAILED);
  context.lineWidth = 1;
  context.beginPath();
  for (let at = -h; at < w; at += 5) {
    context.moveTo(x + at, y + h);
    context.lineTo(x + at + h, y);
  }
  context.stroke();
  context.restore();
}

/** Draw the roofline of this device with what is known of the case on it. */
export function drawRoofline(made, { facts, rows, trial }, theme) {
  const top = roof(facts);
  made.canvas.hidden = !top; // times need a GPU, or a recorded sweep
  if (!top) return;
  const { width, height } = made.fit();
  const { context } = made;
  ink(context, theme, "ink");
  context.fillText("roofline: TFLOP/s over FLOP a byte, ceilings measured", 8, 10);
  const points = rooflinePoints(trial, rows, facts);
  const xs = [Math.min(top.intensity, top.ridge) / 8, Math.max(top.intensity, top.ridge) * 4];
  const least = Math.min(roofAt(top, xs[0]), ...points.map(({ y }) => y)) / 2;
  const ys = [least, top.compute * 2];
  const [left, bottom] = [44, height - 18];
  const along = (value, [low, high], from, to) => from + shareOf(value, low, high) * (to - from);
  const x = (value) => along(value, xs, left, width - 8);
  const y = (value) => along(value, ys, bottom, 24);
  for (let power = Math.ceil(Math.log10(ys[0])); power <= Math.log10(ys[1]); power++) {
    context.fillStyle = css(theme.line);
    context.fillRect(left, Math.round(y(10 ** power)), width - 8 - left, 1);
    ink(context, theme);
    context.textAlign = "right";
    context.fillText(short(10 ** power / 1e12), left - 5, y(10 ** power));
  }
  context.strokeStyle = css(theme.ink);
  context.lineWidth = 1.5;
  context.beginPath();
  context.moveTo(x(xs[0]), y(roofAt(top, xs[0])));
  context.lineTo(x(top.ridge), y(top.compute));
  context.lineTo(x(xs[1]), y(top.compute));
  context.stroke();
  ink(context, theme);
  context.fillText(`${(top.memory / 1e12).toFixed(2)} TB/s`, x(xs[0]) + 4, y(roofAt(top, xs[0])) - 14);
  context.textAlign = "right";
  context.fillText(`${short(top.compute / 1e12)} TFLOP/s`, width - 10, y(top.compute) - 9);
  context.fillText(`${short(top.intensity)} FLOP a byte`, width - 10, height - 8);
  for (const point of points) {
    context.fillStyle = css(point.strong ? theme.accent : point.name ? rgb(HUES[0]) : theme.faint, point.name ? 1 : 0.35);
    context.beginPath();
    context.arc(x(point.x), y(point.y), point.strong ? 5 : 3, 0, 7);
    context.fill();
    if (!point.name) continue;
    context.textAlign = point.strong ? "left" : "right";
    context.fillText(point.name, x(point.x) + (point.strong ? 9 : -9), y(point.y));
  }
}
