// A small chart over steps: areas and lines, a scale that fits, and the step shown as a bar.
import { css } from "./colours.js";
import { short } from "./numbers.js";

const PAD = { left: 42, right: 8, top: 20, bottom: 18 };

/** [lowest, highest] of the rows from..to of a column. */
export function extremes(values, from, to) {
  let [low, high] = [values[from], values[from]];
  for (let k = from + 1; k < to; k++) {
    if (values[k] < low) low = values[k];
    if (values[k] > high) high = values[k];
  }
  return [low, high];
}

/** A column as `at` of a series. */
export const column = (values) => (from, to) => extremes(values, from, to);

/** The next of 1, 2, 5, 10, 20, 50, … that is not below a value. */
export function roundUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((step) => step * power >= value * (1 - 1e-9)) * power;
}

export class SeriesChart {
  /** `made`: what `canvas(parent, …)` returned; title: what is drawn, with its unit. */
  constructor(made, title) {
    Object.assign(this, made, { title, base: document.createElement("canvas"), key: "" });
  }

  /** The row under a mouse event. */
  row(event, rows) {
    const box = this.canvas.getBoundingClientRect();
    const share = (event.clientX - box.left - PAD.left) / (box.width - PAD.left - PAD.right);
    return Math.round(Math.max(0, Math.min(1, share)) * (rows - 1));
  }

  /**
   * Draw `series()`: [{area, colour, at(from, to) -> [low, high]}, …] over `rows`, and a bar at `row`.
   *
   * Many rows share a column of pixels; `at` says how far the values of these go. version: changes
   * when they do; only then, or with size and theme, `series` is asked. ends: the first and the last
   * step. top: the highest value on the scale, if it is not what fits.
   */
  draw({ series, rows, row, ends, version, theme, top, format = short }) {
    const { width, height } = this.fit();
    const key = [width, height, rows, version, theme.paper, theme.ink].join();
    if (key !== this.key) this.drawBase(series(), rows, ends, theme, width, height, top, format);
    this.key = key;
    this.context.drawImage(this.base, 0, 0, width, height);
    const x = PAD.left + (row / Math.max(1, rows - 1)) * (width - PAD.left - PAD.right);
    this.context.fillStyle = css(theme.accent);
    this.context.fillRect(x - 0.75, PAD.top, 1.5, height - PAD.top - PAD.bottom);
  }

  drawBase(series, rows, ends, theme, width, height, top, format) {
    const scale = globalThis.devicePixelRatio || 1;
    [this.base.width, this.base.height] = [width * scale, height * scale].map(Math.round);
    const context = this.base.getContext("2d");
    context.scale(scale, scale);
    const inner = width - PAD.left - PAD.right;
    const count = Math.min(rows, Math.max(1, Math.floor(inner)));
    const edges = Array.from({ length: count + 1 }, (_, k) => Math.floor((k * rows) / count));
    const paths = series.map(({ at }) => edges.slice(1).map((to, k) => at(edges[k], to)));
    const highest = top ?? roundUp(Math.max(...paths.flat().map(([, high]) => high), 0));
    const [bottom, span] = [height - PAD.bottom, height - PAD.top - PAD.bottom];
    const y = (value) => bottom - (Math.min(value, highest) / highest) * span;
    const x = (k) => PAD.left + (count > 1 ? k / (count - 1) : 0) * inner;
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = css(theme.ink);
    context.textBaseline = "middle";
    context.fillText(this.title, PAD.left, 9);
    context.textAlign = "right";
    for (const part of [0, 0.5, 1]) {
      context.fillStyle = css(theme.line);
      context.fillRect(PAD.left, Math.round(y(highest * part)), inner, 1);
      context.fillStyle = css(theme.faint);
      context.fillText(format(highest * part), PAD.left - 5, y(highest * part));
    }
    context.fillStyle = css(theme.faint);
    context.fillText(`step ${ends[1]}`, width - PAD.right, height - 7);
    context.textAlign = "left";
    context.fillText(`step ${ends[0]}`, PAD.left, height - 7);
    series.forEach(({ area, colour }, s) => {
      context.beginPath();
      if (area) context.moveTo(x(0), y(0));
      paths[s].forEach(([low, high], k) => {
        context.lineTo(x(k), y(high));
        if (!area && low < high) context.lineTo(x(k), y(low));
      });
      if (area) context.lineTo(x(count - 1), y(0));
      context.fillStyle = context.strokeStyle = css(colour);
      context.lineWidth = 1.5;
      if (area) context.fill();
      else context.stroke();
    });
  }
}
