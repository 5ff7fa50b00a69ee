// Use over time: blocks in use, blocks cached and free, and what the tokens in them would fill.
import { css, mix } from "./colours.js";

const PAD = { left: 40, right: 8, top: 8, bottom: 18 };

/** [low, high] of a column of the chart: the extremes of the rows that fall into it. */
export function extremes(values, from, to) {
  let [low, high] = [values[from], values[from]];
  for (let k = from + 1; k < to; k++) {
    if (values[k] < low) low = values[k];
    if (values[k] > high) high = values[k];
  }
  return [low, high];
}

/** A count in few letters: 950, 12k, 1.5M. */
export function short(count) {
  if (count < 10_000) return String(count);
  const [unit, name] = count < 1e6 ? [1e3, "k"] : [1e6, "M"];
  return `${Number((count / unit).toPrecision(3))}${name}`;
}

export class UseChart {
  constructor(canvas, context, fit) {
    Object.assign(this, { canvas, context, fit, base: document.createElement("canvas") });
    this.key = "";
  }

  /** The row under a mouse event. */
  row(event, rows) {
    const box = this.canvas.getBoundingClientRect();
    const share = (event.clientX - box.left - PAD.left) / (box.width - PAD.left - PAD.right);
    return Math.round(Math.max(0, Math.min(1, share)) * (rows - 1));
  }

  draw(log, theme) {
    const { width, height } = this.fit();
    const key = [width, height, log.numSteps, log.version, theme.paper, theme.ink].join();
    if (key !== this.key) this.drawBase(log, theme, width, height);
    this.key = key;
    this.context.drawImage(this.base, 0, 0, width, height);
    const x = this.x(log.row, log.numSteps, width);
    this.context.fillStyle = css(theme.accent);
    this.context.fillRect(x - 0.75, PAD.top, 1.5, height - PAD.top - PAD.bottom);
  }

  x(row, rows, width) {
    return PAD.left + (row / Math.max(1, rows - 1)) * (width - PAD.left - PAD.right);
  }

  drawBase(log, theme, width, height) {
    const scale = globalThis.devicePixelRatio || 1;
    this.base.width = Math.round(width * scale);
    this.base.height = Math.round(height * scale);
    const context = this.base.getContext("2d");
    context.scale(scale, scale);
    const total = log.about.num_blocks;
    const [bottom, span] = [height - PAD.bottom, height - PAD.top - PAD.bottom];
    const y = (blocks) => bottom - (blocks / total) * span;
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const part of [0, 0.5, 1]) {
      const blocks = Math.round(total * part);
      context.fillStyle = css(theme.line);
      context.fillRect(PAD.left, Math.round(y(blocks)), width - PAD.left - PAD.right, 1);
      context.fillStyle = css(theme.faint);
      context.fillText(short(blocks), PAD.left - 5, y(blocks));
    }
    const both = log.used.map((used, row) => used + log.cached[row]);
    const held = Float64Array.from(log.tokens_held, (tokens) => tokens / log.about.block_size);
    this.area(context, both, y, width, css(mix(theme.paper, theme.ink, 0.22)));
    this.area(context, log.used, y, width, css(mix(theme.paper, theme.accent, 0.55)));
    this.line(context, held, y, width, css(theme.ink));
    context.fillStyle = css(theme.faint);
    context.textAlign = "left";
    context.fillText(`step ${log.about.first_step}`, PAD.left, height - 7);
    context.textAlign = "right";
    const last = log.about.first_step + log.numSteps - 1;
    context.fillText(`step ${last}`, width - PAD.right, height - 7);
  }

  /** Walk the chart's columns: f(x, low, high). Many steps share a column, or one spans several. */
  columns(values, width, f) {
    const rows = values.length;
    const count = Math.min(rows, Math.max(1, Math.floor(width - PAD.left - PAD.right)));
    for (let k = 0; k < count; k++) {
      const from = Math.floor((k * rows) / count);
      const to = Math.max(from + 1, Math.floor(((k + 1) * rows) / count));
      f(this.x(count === rows ? from : (from + to - 1) / 2, rows, width), ...extremes(values, from, to));
    }
  }

  area(context, values, y, width, colour) {
    context.fillStyle = colour;
    context.beginPath();
    context.moveTo(PAD.left, y(0));
    let last = PAD.left;
    this.columns(values, width, (x, _, high) => context.lineTo((last = x), y(high)));
    context.lineTo(last, y(0));
    context.fill();
  }

  line(context, values, y, width, colour) {
    context.strokeStyle = colour;
    context.lineWidth = 1.5;
    context.beginPath();
    this.columns(values, width, (x, low, high) => {
      context.lineTo(x, y(high));
      if (low < high) context.lineTo(x, y(low));
    });
    context.stroke();
  }
}
