// Pointer and keys of the timeline: hover, click, drag, wheel, zoom.
import { laneAtY } from "./lane_paint.js";
import { columnNear, panned, zoomed } from "./span_axis.js";
import { EDGE, GUTTER } from "./timeline_draw.js";
import { setWindow } from "./timeline_window.js";
import { laneRowsOfTooltip, stepRowsOfTooltip } from "./timeline_words.js";

export function pointer(view) {
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

export function keyboard(view, zoom) {
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
