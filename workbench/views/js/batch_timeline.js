// Steps across, requests down: what each request did in each step, the budget, and the time.
import { showBatch } from "./batch_list.js";
import { css, mix, pixel, rgb } from "./colours.js";
import { LOOK, coloured, laneAtY, laneRows, lanesIn, paintLanes, rowLooks } from "./lane_paint.js";
import { canvas, element, mount } from "./panel.js";
import { PARTS, WORK, stepTokens } from "./run_log.js";
import { groupTraits, legend, loadRun, textButton, toolbar } from "./run_panel.js";
import {
  brief, columnNear, columnsIn, panned, showing, stepAxis, ticks, timeAxis, wholeOf, zoomed,
} from "./span_axis.js";
import { drawStrip, stacked } from "./strips.js";
import { laneRowsOfTooltip, stepRowsOfTooltip } from "./timeline_words.js";
import { TokenTexts, shortened } from "./token_text.js";

const GROUPS = ["sequences", "batches", "drafts"];
const GUTTER = 104; // left of the plots: captions and names
const EDGE = 20; // right of them
const STRIP = 46;
const GAP = 16;
const TOP = 18; // above the first strip: the budget's name
const AXIS = 34;
const LANES = [48, 280]; // least and most height of the lanes
const LANE = 16; // most height of one
const LOOK_HUES = {
  [LOOK.DECODE]: "#009E73", [LOOK.VERIFY]: "#CC79A7", [LOOK.PREFILL]: "#0072B2",
  [LOOK.RECOMPUTE]: "#D55E00", [LOOK.PREEMPTED]: "#E69F00", [LOOK.AWAITING_PREFIX]: "#56B4E9",
  [LOOK.COMPILING]: "#F0E442",
};
const PART_HUES = { schedule: "#E69F00", sample: "#CC79A7", commit: "#56B4E9", other: "#F0E442" };
const WORK_LOOKS = {
  [WORK.DECODE]: LOOK.DECODE, [WORK.VERIFY]: LOOK.VERIFY,
  [WORK.PREFILL]: LOOK.PREFILL, [WORK.RECOMPUTE]: LOOK.RECOMPUTE,
};

/** The colours of looks and of the parts of a step on a theme. */
export function palette(colours) {
  const looks = Object.fromEntries(
    Object.entries(LOOK_HUES).map(([look, hue]) => [
      look,
      colours.dark ? mix(rgb(hue), [255, 255, 255], 0.12) : rgb(hue),
    ]),
  );
  looks[LOOK.IDLE] = mix(colours.paper, looks[LOOK.DECODE], 0.3);
  looks[LOOK.WAITING] = mix(colours.paper, colours.ink, 0.22);
  looks[LOOK.PAUSED] = mix(colours.paper, colours.ink, 0.6);
  const parts = Object.fromEntries(Object.entries(PART_HUES).map(([k, hue]) => [k, rgb(hue)]));
  parts.run = mix(colours.paper, colours.ink, 0.42);
  return { looks, parts };
}

/** Pixels by look and level: weak levels come near to the paper, never quite. */
export function lookTable({ looks }, colours) {
  const table = new Uint32Array(16 * 256);
  for (const [look, colour] of Object.entries(looks))
    for (let value = 0; value < 256; value++)
      table[look * 256 + value] = pixel(mix(colours.paper, colour, 0.5 + (0.5 * value) / 255));
  return table;
}

function build(panel) {
  const { model } = panel;
  const tools = toolbar(panel);
  const keys = tools.appendChild(element("div", "wb-keys"));
  const drawing = canvas(panel.body, "wb-timeline");
  const detail = panel.body.appendChild(element("div", "wb-detail", { tabindex: "0" }));
  const view = {
    panel, keys, drawing, detail, run: null, window: null, lane: -1, open: false, shown: null,
    axisName: model.get("axis"),
  };
  detail.hidden = true;
  const button = (text, title, pressed) => textButton(panel, tools, text, title, pressed);
  const choose = (name) => () => {
    view.axisName = name;
    setAxis(view);
    panel.ask();
  };
  view.axisButtons = {
    steps: button("steps", "Across: steps", choose("steps")),
    ms: button("ms", "Across: milliseconds", choose("ms")),
  };
  const zoom = (factor) => () => {
    if (!view.axis?.left.length) return;
    const column = Math.max(0, view.run.columnAt(panel.cursor.step));
    setWindow(view, zoomed(showing(view.window, column, view.axis), factor, middle(view, column), view.axis));
  };
  button("−", "Wider (key -)", zoom(2));
  button("+", "Closer (key +, or Ctrl and wheel)", zoom(0.5));
  button("all", "The whole run (key 0, or double click)", () => setWindow(view, null));
  pointer(view);
  keyboard(view, zoom);
  return {
    traits: groupTraits(GROUPS),
    async load(newest) {
      const run = await loadRun(model, GROUPS);
      if (newest() && run) take(view, run);
    },
    draw: (step, colours) => draw(view, step, colours),
  };
}

function take(view, run) {
  const header = view.panel.model.get("header");
  const parts = PARTS.filter((part) => run.columns[`step_${part}`].some((value) => value > 0));
  Object.assign(view, {
    run, parts,
    texts: new TokenTexts(run.columns),
    tokens: stepTokens(run.columns, run.firstRow),
    budget: header.max_batch_tokens ?? 0,
  });
  view.rowLook = rowLooks(run.columns, view.budget || Math.max(1, ...view.tokens.total));
  view.times = parts.map((part) => run.columns[`step_${part}`].map((value) => value * 1e3));
  view.time = Float32Array.from({ length: run.count }, (_, c) =>
    view.times.reduce((sum, part) => sum + part[c], 0));
  view.device = run.columns.step_device.map((value) => value * 1e3);
  view.detailOf = null;
  setAxis(view);
}

function setAxis(view) {
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
function setWindow(view, window) {
  if (!view.axis) return;
  const [first, last] = wholeOf(view.axis);
  view.fixed = window && window[1] - window[0] < (last - first) * 0.999 ? window : null;
  view.window = view.fixed ?? [first, last];
  view.panel.ask();
}

function middle(view, column) {
  return (view.axis.left[column] + view.axis.right[column]) / 2;
}

// --- pointer and keys ------------------------------------------------------------------------------

function pointer(view) {
  const { panel, drawing } = view;
  const target = drawing.canvas;
  let held = null; // where a press began
  const toAxis = (x) => {
    const [from, to] = view.window;
    return from + ((x - GUTTER) / (target.clientWidth - GUTTER - EDGE)) * (to - from);
  };
  panel.listen(target, "pointerdown", (event) => {
    if (event.button !== 0 || !view.run?.count) return;
    held = { x: event.offsetX, window: view.window, moved: false };
    target.setPointerCapture(event.pointerId);
  });
  panel.listen(target, "pointermove", (event) => {
    if (!view.run?.count) return;
    if (!held) return hover(view, event, columnNear(toAxis(event.offsetX), view.axis));
    held.moved ||= Math.abs(event.offsetX - held.x) > 3;
    if (!held.moved) return;
    panel.tooltip.hide();
    const share = (held.x - event.offsetX) / (target.clientWidth - GUTTER - EDGE);
    setWindow(view, panned(held.window, share * (held.window[1] - held.window[0]), view.axis));
  });
  panel.listen(target, "pointerup", (event) => {
    const click = held && !held.moved;
    held = null;
    if (!click) return;
    const column = columnNear(toAxis(event.offsetX), view.axis);
    const lane = laneUnder(view, event);
    panel.cursor.select(lane < 0 ? null : view.run.columns.lane_sequence[lane]);
    view.open = true;
    if (event.offsetX >= GUTTER) panel.cursor.go(view.run.stepOf(column));
    panel.ask();
  });
  panel.listen(target, "pointercancel", () => (held = null));
  panel.listen(target, "mouseleave", () => panel.tooltip.hide());
  panel.listen(target, "dblclick", () => setWindow(view, null));
  panel.listen(target, "wheel", (event) => wheel(view, event, toAxis), { passive: false });
}

/** Ctrl and the wheel zoom; sideways it pans; up and down alone it stays the notebook's. */
function wheel(view, event, toAxis) {
  if (!view.run?.count) return;
  const sideways = event.shiftKey ? event.deltaY : event.deltaX;
  if (event.ctrlKey || event.metaKey) {
    setWindow(view, zoomed(view.window, Math.exp(event.deltaY / 400), toAxis(event.offsetX), view.axis));
  } else if (Math.abs(sideways) > (event.shiftKey ? 0 : Math.abs(event.deltaY))) {
    setWindow(view, panned(view.window, (sideways / 800) * (view.window[1] - view.window[0]), view.axis));
  } else return;
  event.preventDefault();
}

function keyboard(view, zoom) {
  const { panel, drawing } = view;
  panel.listen(drawing.canvas, "keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !view.run) return;
    const acts = {
      "+": zoom(0.5), "=": zoom(0.5), "-": zoom(2), 0: () => setWindow(view, null),
      Enter: () => (view.open = !view.open), Escape: () => (view.open = false),
      ArrowDown: () => nextLane(view, 1), ArrowUp: () => nextLane(view, -1),
    };
    if (!(event.key in acts)) return;
    acts[event.key]();
    panel.ask();
    event.preventDefault();
    event.stopPropagation();
  });
}

function nextLane(view, by) {
  const lanes = view.shown?.lanes ?? [];
  const at = lanes.indexOf(view.lane);
  const lane = lanes[at < 0 ? (by > 0 ? 0 : lanes.length - 1) : at + by];
  view.panel.cursor.select(lane === undefined ? null : view.run.columns.lane_sequence[lane]);
}

function laneUnder(view, event) {
  const { shown } = view;
  if (!shown) return -1;
  return laneAtY(event.offsetY - shown.top, shown.lanes, shown.places);
}

function hover(view, event, column) {
  const { panel, shown } = view;
  if (!shown || (event.offsetX < GUTTER && event.offsetY < shown.top)) return panel.tooltip.hide();
  const lane = laneUnder(view, event);
  const rows = lane >= 0 ? laneRowsOfTooltip(view, lane, column) : stepRowsOfTooltip(view, column);
  panel.tooltip.show(event, rows);
}

// --- drawing ---------------------------------------------------------------------------------------

function draw(view, step, colours) {
  const { run, drawing, panel } = view;
  if (!run?.count) return empty(view, colours);
  const column = Math.max(0, run.columnAt(step));
  view.lane = run.laneOf(panel.cursor.selected);
  const moved = showing(view.window, column, view.axis);
  if (moved !== view.window && view.followed !== step) view.window = view.fixed = moved;
  view.followed = step;
  const paint = palette(colours);
  const columns = columnsIn(view.window, view.axis);
  const lanes = lanesIn(run.states, ...columns);
  const height = Math.min(LANES[1], Math.max(LANES[0], lanes.length * LANE));
  const top = TOP + 2 * (STRIP + GAP) - 2;
  drawing.canvas.style.height = `${top + height + AXIS}px`;
  const { width } = drawing.fit();
  const plot = { x: GUTTER, width: Math.max(50, width - GUTTER - EDGE) };
  const toX = pixels(view, plot.width, 1);
  drawing.context.font = "11px system-ui, sans-serif";
  drawStrips(view, plot, columns, toX, colours, paint);
  const box = { ...plot, y: top, height };
  view.shown = { lanes, top, places: laneRows(lanes, run.laneCount, height, LANE), columns };
  drawLanes(view, box, colours, paint);
  drawNames(view, box, colours);
  drawCells(view, box, toX, colours, paint);
  drawAxis(view, box, toX, column, colours);
  showLegend(view, paint, colours);
  showDetail(view, column, paint);
  return sentence(view, column);
}

/** column -> [x0, x1, x1 without a gap] in pixels of a plot; scale: device pixels to one. */
function pixels(view, width, scale) {
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

function drawStrips(view, plot, columns, toX, colours, { looks, parts }) {
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

function drawLanes(view, box, colours, paint) {
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

function drawNames(view, box, colours) {
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
function drawCells(view, box, toX, colours, { looks }) {
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
      context.fillText(shortened(text, room), middleX, y);
    }
  }
  context.restore();
}

function inkOn([r, g, b]) {
  return 0.3 * r + 0.59 * g + 0.11 * b > 140 ? [0, 0, 0] : [255, 255, 255];
}

function drawAxis(view, box, toX, column, colours) {
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

function empty({ drawing }, colours) {
  drawing.canvas.style.height = "60px";
  const { width } = drawing.fit();
  drawing.context.fillStyle = css(colours.faint);
  drawing.context.font = "13px system-ui, sans-serif";
  drawing.context.textAlign = "center";
  drawing.context.fillText("No step yet.", width / 2, 34);
  return "no step yet";
}

const WORDS = [
  [LOOK.DECODE, "decode"],
  [LOOK.VERIFY, "draft verified (strong: accepted)"],
  [LOOK.PREFILL, "prefill"],
  [LOOK.RECOMPUTE, "recomputed"],
  [LOOK.IDLE, "running, not in the batch", "band"],
  [LOOK.WAITING, "waiting", "band"],
  [LOOK.AWAITING_PREFIX, "waiting for a prefix", "band"],
  [LOOK.COMPILING, "grammar compiles", "band"],
  [LOOK.PREEMPTED, "preempted", "band"],
  [LOOK.PAUSED, "paused", "band"],
];

/** Only what the part in view has: a legend of what is not there is clutter. */
function showLegend(view, { looks, parts }, colours) {
  const seen = new Set();
  for (const look of view.looks) seen.add(look >> 8);
  const wanted = WORDS.filter(([look]) => seen.has(look));
  const entries = wanted.map(([look, text, shape]) => [looks[look], text, shape]);
  entries.push([null, "step time:"]);
  for (const part of view.parts) entries.push([parts[part], part, "box"]);
  if (view.device.some((value) => value > 0)) entries.push([colours.ink, "device", "line"]);
  const key = JSON.stringify(entries);
  if (view.legendOf === key) return;
  view.legendOf = key;
  legend(view.keys, entries);
}

function showDetail(view, column, { looks }) {
  view.detail.hidden = !view.open;
  const key = `${view.open} ${column}`;
  if (!view.open || view.detailOf === key) return;
  view.detailOf = key;
  const colourOf = (work) => looks[WORK_LOOKS[work]];
  showBatch(view.detail, view.run, column, { texts: view.texts, colourOf, budget: view.budget });
}

function sentence(view, column) {
  const { run, tokens } = view;
  const [from, to] = run.rows(column);
  const waiting = run.columns.step_waiting[column];
  return (
    `step ${run.stepOf(column)}: ${tokens.total[column]} tokens in ${to - from} rows, ` +
    `${waiting} waiting, ${brief(view.time[column], "ms")}`
  );
}

export default mount("batch-timeline", build);
