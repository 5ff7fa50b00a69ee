// Steps across, requests down: what each request did in each step, the budget, and the time.
import { showBatch } from "./batch_list.js";
import { css } from "./colours.js";
import { laneRows, lanesIn, rowLooks } from "./lane_paint.js";
import { canvas, element, mount } from "./panel.js";
import { PARTS, stepTokens } from "./run_log.js";
import { groupTraits, loadRun, textButton, toolbar } from "./run_panel.js";
import { brief, columnsIn, showing, zoomed } from "./span_axis.js";
import {
  AXIS, EDGE, GAP, GUTTER, LANE, LANES, STRIP, TOP, drawAxis, drawCells, drawLanes, drawNames,
  drawStrips,
} from "./timeline_draw.js";
import { keyboard, pointer } from "./timeline_hands.js";
import { WORK_LOOKS, palette, showLegend } from "./timeline_looks.js";
import { middle, pixels, setAxis, setWindow } from "./timeline_window.js";
import { TokenTexts } from "./token_text.js";

const GROUPS = ["sequences", "batches", "drafts"];

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

function empty({ drawing }, colours) {
  drawing.canvas.style.height = "60px";
  const { width } = drawing.fit();
  drawing.context.fillStyle = css(colours.faint);
  drawing.context.font = "13px system-ui, sans-serif";
  drawing.context.textAlign = "center";
  drawing.context.fillText("No step yet.", width / 2, 34);
  return "no step yet";
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
