// Strips of stacked bars over an axis of steps: tokens of each step, and its time by parts.
import { brief, roundUp } from "./span_axis.js";
import { css } from "./colours.js";

/**
 * Which column stands for each pixel: the tallest of those that fall on it; -1 for none.
 *
 * columns: [from, to); toX(column): [x0, x1); total: by column.
 */
export function tallest(width, columns, toX, total) {
  const found = new Int32Array(width).fill(-1);
  for (let column = columns[0]; column < columns[1]; column++) {
    const [x0, x1] = toX(column);
    for (let x = Math.max(0, x0); x < Math.min(width, x1); x++)
      if (found[x] < 0 || total[column] > total[found[x]]) found[x] = column;
  }
  return found;
}

/** Runs of pixels that show one column: [[column, x0, x1], ...]. */
export function runsOf(found) {
  const runs = [];
  for (let x = 0; x < found.length; x++) {
    const last = runs[runs.length - 1];
    if (found[x] < 0) continue;
    if (last && last[0] === found[x] && last[2] === x) last[2] = x + 1;
    else runs.push([found[x], x, x + 1]);
  }
  return runs;
}

/**
 * Draw a strip: {layers: [{values, colour}], total, limit, limitName, unit, caption} into a box {x, y, width,
 * height}; limit: a line that is always seen. Returns the value at the top.
 */
export function drawStrip(context, box, strip, columns, toX, colours) {
  const runs = runsOf(tallest(box.width, columns, toX, strip.total));
  let most = strip.limit ?? 0;
  for (const [column] of runs) most = Math.max(most, strip.total[column]);
  const top = roundUp(most);
  const scale = box.height / top;
  context.fillStyle = css(colours.line, 0.35);
  context.fillRect(box.x, box.y + box.height, box.width, 1);
  for (const { values, colour } of strip.layers) {
    context.fillStyle = css(colour);
    for (const [column, x0, x1] of runs) {
      const below = strip.below(values, column);
      const [low, high] = [below * scale, (below + values[column]) * scale];
      if (high - low <= 0) continue;
      context.fillRect(box.x + x0, box.y + box.height - high, x1 - x0, Math.max(0.5, high - low));
    }
  }
  if (strip.marks) {
    context.fillStyle = css(colours.ink);
    for (const [column, x0, x1] of runs) {
      const value = strip.marks[column];
      if (value > 0) context.fillRect(box.x + x0, box.y + box.height - value * scale - 1, x1 - x0, 2);
    }
  }
  labels(context, box, strip, top, colours);
  if (strip.limit) limitLine(context, box, strip, box.y + box.height - strip.limit * scale, colours);
  return top;
}

function labels(context, box, { caption, unit }, top, colours) {
  context.textAlign = "right";
  context.textBaseline = "middle";
  context.fillStyle = css(colours.faint);
  context.fillText(brief(top), box.x - 6, box.y + 5);
  context.fillText("0", box.x - 6, box.y + box.height - 3);
  context.textAlign = "left";
  context.fillStyle = css(colours.ink);
  context.fillText(caption, 0, box.y + box.height / 2 - 7);
  context.fillStyle = css(colours.faint);
  context.fillText(unit, 0, box.y + box.height / 2 + 8);
}

function limitLine(context, box, { limit, limitName }, y, colours) {
  context.strokeStyle = css(colours.ink, 0.75);
  context.lineWidth = 1;
  context.setLineDash([4, 3]);
  context.beginPath();
  context.moveTo(box.x, Math.round(y) + 0.5);
  context.lineTo(box.x + box.width, Math.round(y) + 0.5);
  context.stroke();
  context.setLineDash([]);
  context.fillStyle = css(colours.faint);
  context.textAlign = "right";
  context.textBaseline = "bottom";
  context.fillText(`${limitName} ${limit}`, box.x + box.width, y - 3);
}

/** Layers stacked in their order: what lies below one of them in a column. */
export function stacked(layers) {
  return (values, column) => {
    let sum = 0;
    for (const layer of layers) {
      if (layer.values === values) return sum;
      sum += layer.values[column];
    }
    return sum;
  };
}
