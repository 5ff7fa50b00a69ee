// What happened in the step, drawn over the cells: new, taken over, copied, evicted, moved.
import { css } from "./colours.js";
import { MARKS } from "./kv_log.js";

const BIT = Object.fromEntries(MARKS.map((name, k) => [name, 1 << k]));

/** Draw a step's marks on a grid; with cells too small for signs, as a dot in the ink's colour. */
export function drawMarks(grid, marks, theme) {
  const { context, side } = grid;
  const width = Math.max(1.5, Math.min(3, side * 0.1));
  context.lineWidth = width;
  for (const { place, bits, other } of marks) {
    const middle = grid.middle(place);
    if (!middle) continue;
    const { x, y } = middle;
    const half = side / 2;
    context.strokeStyle = context.fillStyle = css(theme.ink);
    if (!grid.detailed) {
      context.fillRect(x - half, y - half, side, side);
      continue;
    }
    const reach = half - width / 2 - 0.5;
    context.setLineDash(bits & BIT.new ? [] : [3, 2]);
    if (bits & (BIT.new | BIT.hit | BIT.copied))
      context.strokeRect(x - half + 0.5, y - half + 0.5, 2 * reach, 2 * reach);
    context.setLineDash([]);
    if (bits & BIT.copied) arrow(context, grid.middle(other), middle, side);
    const signs = [];
    if (bits & BIT.offloaded) signs.push((at, r) => triangle(context, at, y, r, 1));
    else if (bits & BIT.evicted) signs.push((at, r) => cross(context, at, y, r));
    if (bits & BIT.restored) signs.push((at, r) => triangle(context, at, y, r, -1));
    const r = (reach * 0.55) / Math.max(1, signs.length * 0.8);
    signs.forEach((sign, k) => sign(x + (k - (signs.length - 1) / 2) * 2.4 * r, r));
  }
}

function cross(context, x, y, r) {
  context.beginPath();
  for (const sign of [1, -1]) {
    context.moveTo(x - r, y - r * sign);
    context.lineTo(x + r, y + r * sign);
  }
  context.stroke();
}

function triangle(context, x, y, r, down) {
  context.beginPath();
  context.moveTo(x - r, y - r * 0.7 * down);
  context.lineTo(x + r, y - r * 0.7 * down);
  context.lineTo(x, y + r * down);
  context.fill();
}

function arrow(context, from, to, side) {
  if (!from) return;
  const angle = Math.atan2(to.y - from.y, to.x - from.x);
  const head = Math.max(4, side * 0.3);
  context.beginPath();
  context.moveTo(from.x, from.y);
  context.lineTo(to.x, to.y);
  for (const turn of [0.5, -0.5]) {
    context.moveTo(to.x, to.y);
    context.lineTo(to.x - head * Math.cos(angle + turn), to.y - head * Math.sin(angle + turn));
  }
  context.stroke();
}
