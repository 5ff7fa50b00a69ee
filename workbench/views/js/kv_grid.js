// Blocks as a grid of cells: geometry, pixels, and what is drawn over them.
import { css, mix, pixel, sequenceColour } from "./colours.js";
import { fillOf, isOnHost, ownerOf, referencesOf } from "./kv_log.js";

const COLOURS = 21; // sequences that look different
const LARGEST = 38; // CSS pixels of a cell
const DETAILED = 7; // device pixels from which a cell shows more than a colour

/** {columns, rows, size} for `count` cells in a width and, if it can be, a height (CSS pixels). */
export function layOut(count, width, height) {
  let size = LARGEST;
  const columnsAt = (s) => {
    const most = Math.max(1, Math.floor(width / s));
    return s >= 8 && most >= 16 ? most - (most % 4) : most; // rows that are easy to count along
  };
  // A pixel is hard to point at: rather half as high again and more than less than two.
  const most = (s) => (s > 2 ? height : 1.7 * height);
  while (size > 1 && Math.ceil(count / columnsAt(size)) * size > most(size)) size--;
  const columns = Math.max(1, Math.min(columnsAt(size), count));
  return { columns, rows: Math.ceil(count / columns), size };
}

/** The cell under a point of the grid (CSS pixels), or -1. */
export function hit({ columns, size }, count, x, y) {
  const [column, row] = [Math.floor(x / size), Math.floor(y / size)];
  const cell = row * columns + column;
  return column >= 0 && column < columns && row >= 0 && cell < count ? cell : -1;
}

/** Pixel values of every look a cell can have. unit: what stands for a full block. */
export function looks(theme, unit) {
  const neutral = mix(theme.paper, theme.ink, theme.dark ? 0.16 : 0.09);
  const table = {
    blank: pixel(neutral),
    gap: pixel(theme.paper),
    ink: pixel(theme.ink),
    unit,
    full: new Uint32Array(COLOURS),
    pale: new Uint32Array(COLOURS),
    byFill: new Uint32Array(COLOURS * (unit + 1)),
    cached: new Uint32Array(COLOURS),
    dim: new Uint32Array(COLOURS),
    contrast: new Uint32Array(COLOURS),
  };
  for (let n = 0; n < COLOURS; n++) {
    const colour = sequenceColour(n);
    const pale = mix(colour, neutral, 0.72);
    table.full[n] = pixel(colour);
    table.pale[n] = pixel(pale);
    table.cached[n] = pixel(mix(colour, neutral, 0.6));
    table.dim[n] = pixel(mix(colour, neutral, 0.82));
    const light = colour[0] * 0.3 + colour[1] * 0.6 + colour[2] * 0.1 > 120;
    table.contrast[n] = pixel(light ? [0, 0, 0] : [255, 255, 255]);
    for (let fill = 0; fill <= unit; fill++)
      table.byFill[n * (unit + 1) + fill] = pixel(mix(pale, colour, fill / unit));
  }
  return table;
}

/** One pixel per cell. chosen: null, or 1 for each place that is not to be dimmed. */
export function paintFlat(pixels, cells, first, count, look, chosen) {
  for (let i = 0; i < count; i++) {
    const cell = cells[first + i];
    const hue = Math.max(0, ownerOf(cell)) % COLOURS;
    if (cell === 0) pixels[i] = look.blank;
    else if (chosen && !chosen[first + i]) pixels[i] = look.dim[hue];
    else if (referencesOf(cell)) pixels[i] = look.byFill[hue * (look.unit + 1) + fillOf(cell)];
    else pixels[i] = look.cached[hue];
  }
  pixels.fill(look.gap, count);
}

/**
 * `side` pixels square per cell: filled from below as far as tokens are in it; striped where it is
 * free and can be found; a corner above where it is shared, and below where the host has the same.
 */
export function paintDetailed(pixels, width, cells, first, count, columns, side, look, chosen) {
  pixels.fill(look.gap);
  const gap = side >= 12 ? 2 : 1;
  const inner = side - gap;
  const corner = Math.max(3, Math.round(inner * 0.38));
  for (let i = 0; i < count; i++) {
    const cell = cells[first + i];
    const hue = Math.max(0, ownerOf(cell)) % COLOURS;
    const used = referencesOf(cell) > 0;
    const dimmed = chosen && !chosen[first + i];
    const level = used ? inner - Math.round((fillOf(cell) / look.unit) * inner) : 0;
    const left = (i % columns) * side;
    const top = Math.floor(i / columns) * side;
    const full = cell === 0 ? look.blank : dimmed ? look.dim[hue] : look.full[hue];
    const pale = dimmed ? look.dim[hue] : look.pale[hue];
    for (let y = 0; y < inner; y++) {
      const start = (top + y) * width + left;
      if (cell !== 0 && !used)
        for (let x = 0; x < inner; x++)
          pixels[start + x] = ((x + y) & 3) < 2 && !dimmed ? look.cached[hue] : look.blank;
      else pixels.fill(y < level ? pale : full, start, start + inner);
      if (dimmed) continue;
      const above = corner - y;
      if (referencesOf(cell) > 1 && above > 0)
        pixels.fill(look.contrast[hue], start + inner - above, start + inner);
      const below = corner - (inner - 1 - y);
      if (isOnHost(cell) && below > 0) pixels.fill(look.ink, start, start + below);
    }
  }
}

/** A section of places, `first` to `first + count - 1`, on a canvas of its own. */
export class Grid {
  constructor(canvas, context, first, count) {
    Object.assign(this, { canvas, context, first, count });
    this.texels = document.createElement("canvas"); // one pixel per cell, then stretched
  }

  /** Fit the canvas into a width and height (CSS pixels). */
  resize(width, height) {
    const scale = globalThis.devicePixelRatio || 1;
    this.shape = layOut(this.count, width, height);
    this.scale = scale;
    this.side = Math.max(1, Math.round(this.shape.size * scale));
    const [w, h] = [this.shape.columns * this.side, this.shape.rows * this.side];
    if (this.canvas.width !== w) this.canvas.width = w;
    if (this.canvas.height !== h) this.canvas.height = h;
    this.canvas.style.width = `${w / scale}px`;
    this.canvas.style.height = `${h / scale}px`;
    this.detailed = this.side >= DETAILED;
    const target = this.detailed ? [w, h] : [this.shape.columns, this.shape.rows];
    if (this.image?.width !== target[0] || this.image?.height !== target[1]) {
      this.image = new ImageData(...target);
      this.pixels = new Uint32Array(this.image.data.buffer);
      [this.texels.width, this.texels.height] = target;
    }
  }

  /** The place under a mouse event, or -1. */
  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const shape = { ...this.shape, size: this.side / this.scale };
    const cell = hit(shape, this.count, event.clientX - box.left, event.clientY - box.top);
    return cell < 0 ? -1 : this.first + cell;
  }

  /** The middle of a place in device pixels; null if it is not of this section. */
  middle(place) {
    const i = place - this.first;
    if (i < 0 || i >= this.count) return null;
    const { columns } = this.shape;
    const at = (n) => n * this.side + this.side / 2;
    return { x: at(i % columns), y: at(Math.floor(i / columns)) };
  }

  paint(cells, look, chosen) {
    const { pixels, first, count, shape, context } = this;
    if (this.detailed) {
      const { width } = this.image;
      paintDetailed(pixels, width, cells, first, count, shape.columns, this.side, look, chosen);
      context.putImageData(this.image, 0, 0);
      return;
    }
    paintFlat(pixels, cells, first, count, look, chosen);
    this.texels.getContext("2d").putImageData(this.image, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(this.texels, 0, 0, this.canvas.width, this.canvas.height);
  }

  /** The blocks of a table as a line from the first to the last. places: in order. */
  path(places, theme) {
    const { context, side } = this;
    const points = places.map((place) => this.middle(place)).filter(Boolean);
    if (!points.length) return;
    for (const [colour, width] of [[theme.paper, 0.3], [theme.ink, 0.14]]) {
      context.strokeStyle = css(colour, 0.9);
      context.lineWidth = Math.max(width === 0.14 ? 1.5 : 3, Math.min(side, 20) * width);
      context.lineJoin = "round";
      context.beginPath();
      for (const { x, y } of points) context.lineTo(x, y);
      context.stroke();
    }
    context.fillStyle = css(theme.ink);
    const radius = Math.max(1.5, Math.min(side, 26) * 0.14);
    for (const [k, { x, y }] of points.entries()) {
      context.beginPath();
      context.arc(x, y, k === 0 ? radius * 1.7 : radius, 0, 7);
      context.fill();
    }
  }
}
