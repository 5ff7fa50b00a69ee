// Acceptance by position over time: a row for each position of a draft, a cell for some steps.
import { css, mix, rgb } from "./colours.js";
import { ticks } from "./span_axis.js";

const ROW = 18;
const GUTTER = 104;
const TOTALS = 96; // right of it: over the whole run
const TOP = 16;
const LEAST = 5; // pixels of a cell
const SHADE = rgb("#009E73");

/** How many columns one cell stands for, so that all fit. */
export function binning(count, width) {
  const most = Math.max(1, Math.floor(width / LEAST));
  const each = Math.max(1, Math.ceil(count / most));
  return { each, bins: Math.max(1, Math.ceil(count / each)) };
}

/** Draw it; returns {columnAt(x), wordsAt(x, y)} for the pointer. */
export function drawAcceptance({ canvas, context, fit }, { run, positions, column, count, sum }, colours) {
  canvas.style.height = `${TOP + positions * ROW + 22}px`;
  const { width } = fit();
  const wide = Math.max(50, width - GUTTER - TOTALS);
  const { each, bins } = binning(run.count, wide);
  const found = count(run, positions, bins, each);
  const cell = Math.min(24, wide / bins);
  context.font = "11px system-ui, sans-serif";
  context.textBaseline = "middle";
  for (let k = 0; k < positions; k++) {
    const y = TOP + k * ROW;
    for (let bin = 0; bin < bins; bin++) {
      const tried = found.tried[k * bins + bin];
      if (!tried) continue;
      const share = found.accepted[k * bins + bin] / tried;
      context.fillStyle = css(shade(share, colours));
      context.fillRect(GUTTER + bin * cell, y + 1, Math.max(1, cell - (cell > 3 ? 1 : 0)), ROW - 2);
    }
    rowLabels(context, k, y, width, sum(found, k, bins), colours);
  }
  const bottom = TOP + positions * ROW;
  captions(context, width, bottom, colours);
  axis(context, run, { each, cell, bins, bottom }, colours);
  if (column >= 0) {
    context.strokeStyle = css(colours.accent);
    context.lineWidth = 2;
    context.strokeRect(GUTTER + Math.floor(column / each) * cell - 1, TOP - 1, cell + 1, positions * ROW + 2);
  }
  const binAt = (x) => Math.floor((x - GUTTER) / cell);
  const inside = (bin) => bin >= 0 && bin < bins;
  return {
    columnAt: (x) => (inside(binAt(x)) ? Math.min(run.count - 1, binAt(x) * each) : -1),
    wordsAt(x, y) {
      const [bin, k] = [binAt(x), Math.floor((y - TOP) / ROW)];
      if (!inside(bin) || k < 0 || k >= positions) return null;
      return words(run, found, { bin, k, bins, each });
    },
  };
}

/** The colour of a share: never the paper's, which is where nothing was tried. */
function shade(share, colours) {
  return mix(mix(colours.paper, colours.ink, 0.1), SHADE, share);
}

function words(run, { tried, accepted }, { bin, k, bins, each }) {
  const [from, to] = [bin * each, Math.min(run.count, (bin + 1) * each) - 1];
  const steps = from === to ? String(run.stepOf(from)) : `${run.stepOf(from)} to ${run.stepOf(to)}`;
  const [n, yes] = [tried[k * bins + bin], accepted[k * bins + bin]];
  return [
    ["steps", steps],
    ["position", `${k + 1} in the draft`],
    ["accepted", n ? `${yes} of ${n} drafts that deep (${Math.round((100 * yes) / n)} %)` : "no draft"],
  ];
}

function rowLabels(context, k, y, width, [tried, accepted], colours) {
  context.textAlign = "right";
  context.fillStyle = css(colours.faint);
  context.fillText(String(k + 1), GUTTER - 8, y + ROW / 2);
  const share = tried ? `${Math.round((100 * accepted) / tried)} %` : "–";
  context.fillStyle = css(colours.ink);
  context.fillText(share, width - TOTALS + 42, y + ROW / 2);
  context.fillStyle = css(colours.faint);
  context.fillText(`of ${tried}`, width - 4, y + ROW / 2);
}

function captions(context, width, bottom, colours) {
  context.fillStyle = css(colours.faint);
  context.textAlign = "left";
  context.fillText("draft position", 0, TOP + ROW / 2);
  context.fillText("step", 0, bottom + 10);
  const title = "share accepted, by position over time:  0 %";
  context.fillText(title, GUTTER, 7);
  let x = GUTTER + context.measureText(title).width + 6;
  for (let k = 0; k <= 8; k++, x += 9) {
    context.fillStyle = css(shade(k / 8, colours));
    context.fillRect(x, 2, 9, 10);
  }
  context.fillStyle = css(colours.faint);
  context.fillText("100 %", x + 6, 7);
  context.textAlign = "right";
  context.fillText("all steps", width - 4, 7);
}

function axis(context, run, { each, cell, bins, bottom }, colours) {
  context.fillStyle = css(colours.faint);
  context.textAlign = "center";
  const last = run.stepOf(run.count - 1);
  for (const step of ticks(run.stepOf(0), last, (bins * cell) / 80, true)) {
    const x = GUTTER + (Math.floor(run.columnAt(step) / each) + 0.5) * cell;
    context.fillRect(Math.round(x), bottom, 1, 3);
    context.fillText(String(step), x, bottom + 11);
  }
}
