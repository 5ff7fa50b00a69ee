// The parts of the timeline on its canvas: strips, lanes, names, words in cells, axis.
import { css } from "./colours.js";
import { LOOK, coloured, laneRows, paintLanes } from "./lane_paint.js";
import { WORK } from "./run_log.js";
import { brief, ticks } from "./span_axis.js";
import { drawStrip, stacked } from "./strips.js";
import { WORK_LOOKS, inkOn, lookTable } from "./timeline_looks.js";
import { pixels } from "./timeline_window.js";
import { shortened } from "./token_text.js";

export const GUTTER = 104; // left of the plots: captions and names
export const EDGE = 20; // right of them
export const STRIP = 46;
export const GAP = 16;
export const TOP = 18; // above the first strip: the budget's name
export const AXIS = 34;
export const LANES = [48, 280]; // least and most height of the lanes
export const LANE = 16; // most height of one

export function drawStrips(view, plot, columns, toX, colours, { looks, parts }) {
  const { tokens, drawing } = view;
  const layers = [
    { values: tokens.decode, colour: looks[LOOK.DECODE] },
    { values: tokens.draft, colour: looks[LOOK.VERIFY] },
    { values: tokens.prefill, colour: looks[LOOK.PREFILL] },
    { values: tokens.recompute, colour: looks[LOOK.RECOMPUTE] },
  ];
  const batch = { layers, total: tokens.total, caption: "batch", unit: "tokens" };
  Object.assign(batch, { limit: view.budget, limitName: "max_batch_tokens" });
  batch.below = stacked(layers);
  drawStrip(drawing.context, { ...plot, y: TOP, height: STRIP }, batch, columns, toX, colours);
  const times = view.parts.map((part, k) => ({ values: view.times[k], colour: parts[part] }));
  const time = { layers: times, total: view.time, caption: "step time", unit: "ms" };
  time.below = stacked(times);
  time.marks = view.device.some((value) => value > 0) ? view.device : null;
  const box = { ...plot, y: TOP + STRIP + GAP, height: STRIP };
  drawStrip(drawing.context, box, time, columns, toX, colours);
}

export function drawLanes(view, box, colours, paint) {
  const scale = globalThis.devicePixelRatio || 1;
  const [width, height] = [Math.round(box.width * scale), Math.round(box.height * scale)];
  const { run, rowLook, shown, drawing } = view;
  const places = laneRows(shown.lanes, run.laneCount, height, LANE * scale);
  if (view.image?.width !== width || view.image?.height !== height) {
    view.image = new ImageData(width, height);
    view.looks = new Uint16Array(width * height);
  }
  const { lanes, columns } = shown;
  const toX = pixels(view, box.width, scale);
  paintLanes(view.looks, width, { run, rowLook, lanes, places, columns, toX });
  if (view.tableOf !== colours) {
    view.table = lookTable(paint, colours);
    view.tableOf = colours;
  }
  coloured(new Uint32Array(view.image.data.buffer), view.looks, view.table);
  drawing.context.putImageData(view.image, Math.round(box.x * scale), Math.round(box.y * scale));
}

export function drawNames(view, box, colours) {
  const { context } = view.drawing;
  const { lanes, places } = view.shown;
  context.textAlign = "right";
  context.textBaseline = "middle";
  const stride = Math.max(1, Math.ceil(12 / places.each));
  lanes.forEach((lane, place) => {
    if (place % stride && lane !== view.lane) return;
    const y = box.y + (places.top[lane] + places.bottom[lane]) / 2;
    context.fillStyle = css(lane === view.lane ? colours.ink : colours.faint);
    context.fillText(shortened(view.run.name(lane), 14), box.x - 6, y);
  });
  if (view.lane >= 0 && places.top[view.lane] >= 0) {
    context.strokeStyle = css(colours.ink, 0.8);
    const [top, bottom] = [places.top[view.lane], places.bottom[view.lane]];
    context.strokeRect(box.x - 0.5, box.y + top - 0.5, box.width + 1, Math.max(3, bottom - top) + 1);
  }
}

/** Words in cells that have room for them: a chunk's tokens, or the token that a decode made. */
export function drawCells(view, box, toX, colours, { looks }) {
  const { run, shown, drawing, texts } = view;
  const { places, columns } = shown;
  if (places.each < 11 || columns[1] - columns[0] > box.width / 14) return;
  const { context } = drawing;
  const { row_lane, row_num, row_work, row_at, row_made } = run.columns;
  context.save();
  context.beginPath();
  context.rect(box.x, box.y, box.width, box.height);
  context.clip();
  context.textAlign = "center";
  context.textBaseline = "middle";
  for (let column = columns[0]; column < columns[1]; column++) {
    const [x0, x1] = toX(column);
    const room = Math.floor((x1 - x0 - 3) / 6.2);
    const middleX = box.x + (x0 + x1) / 2;
    if (room < 1) continue;
    for (let row = run.firstRow[column]; row < run.firstRow[column + 1]; row++) {
      const lane = row_lane[row];
      const chunk = row_work[row] >= WORK.PREFILL;
      const text = chunk
        ? String(row_num[row])
        : row_made[row] > 1
          ? `+${row_made[row]}`
          : row_made[row] ? texts.shown(run.tokenAt(lane, row_at[row])) : "";
      if (!text || (chunk && text.length > room)) continue;
      const y = box.y + (places.top[lane] + places.bottom[lane]) / 2 + 0.5;
      context.fillStyle = css(inkOn(looks[WORK_LOOKS[row_work[row]]]));
      const fitting = room < 4 ? [...text].slice(0, room).join("") : shortened(text, room);
      context.fillText(fitting, middleX, y);
    }
  }
  context.restore();
}

export function drawAxis(view, box, toX, column, colours) {
  const { context } = view.drawing;
  const { window, axis, run } = view;
  const bottom = box.y + box.height;
  const factor = box.width / (window[1] - window[0]);
  context.fillStyle = css(colours.line);
  context.fillRect(box.x, bottom, box.width, 1);
  context.textAlign = "center";
  context.textBaseline = "top";
  context.fillStyle = css(colours.faint);
  const steps = axis.unit === "steps";
  for (const [at, text] of steps ? stepTicks(run, view.shown.columns, box) : msTicks(window, box)) {
    const x = box.x + (at - window[0]) * factor;
    if (x < box.x || x > box.x + box.width) continue;
    context.fillRect(Math.round(x), bottom, 1, 4);
    context.fillText(text, x, bottom + 6);
  }
  context.textAlign = "left";
  context.fillText(steps ? "step" : "ms from start", 0, bottom + 6);
  const [x0, , x1] = toX(column);
  if (x1 < 0 || x0 > box.width) return;
  const left = box.x + Math.max(0, x0);
  const wide = Math.max(2, Math.min(box.width, x1) - Math.max(0, x0));
  context.fillStyle = css(colours.accent, 0.16);
  context.fillRect(left, 0, wide, bottom);
  context.fillStyle = css(colours.accent);
  context.fillRect(left, bottom, wide, 3);
  context.fillRect(left, 0, 1, bottom);
  context.fillRect(left + wide - 1, 0, 1, bottom);
}

/** Round numbers of steps, in the middle of their columns. */
function stepTicks(run, [from, to], { width }) {
  const [first, last] = [run.stepOf(from), run.stepOf(to - 1)];
  return ticks(first, last, width / 80, true).map((step) => [run.columnAt(step) + 0.5, String(step)]);
}

function msTicks([from, to], { width }) {
  return ticks(from, to, width / 80).map((at) => [at, brief(at)]);
}
