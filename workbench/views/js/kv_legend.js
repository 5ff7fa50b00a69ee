// What the cells and signs of the KV cache view mean; each sample is painted as a cell is.
import { paintDetailed } from "./kv_grid.js";
import { element } from "./panel.js";

const SIDE = 16;
const SAMPLES = [
  ["in use, by sequence", (unit) => [1 | (unit << 19) | (1 << 27), 2 | (unit << 19) | (1 << 27)]],
  ["half full", (unit) => [1 | ((unit >> 1) << 19) | (1 << 27)]],
  ["shared", (unit) => [1 | (unit << 19) | (2 << 27)]],
  ["free, content can be found", (unit) => [1 | (unit << 19) | (1 << 30)]],
  ["blank", () => [0]],
];
const ON_HOST = ["also on the host", (unit) => [1 | (unit << 19) | (1 << 27) | (1 << 31)]];
const SIGNS = [
  ["□", "new in this step"],
  ["⬚", "taken over (prefix hit, fork)"],
  ["→", "copied on write"],
  ["✕", "evicted before"],
];
const HOST_SIGNS = [
  ["▼", "evicted to the host"],
  ["▲", "brought back"],
];

/** Fill `box` with the legend, once for each theme (`look` is made anew when it changes). */
export function legend(box, log, look) {
  if (box.look === look) return;
  box.look = look;
  const host = log.about.num_slots > 0;
  const samples = host ? [...SAMPLES, ON_HOST] : SAMPLES;
  const signs = host ? [...SIGNS, ...HOST_SIGNS] : SIGNS;
  box.replaceChildren(
    ...samples.map(([text, cells]) => entry(sample(cells(look.unit), look), text)),
    ...signs.map(([sign, text]) => entry(element("span", "wb-sign", {}, sign), text)),
    entry(element("span", "wb-swatch wb-swatch-used"), "below: blocks in use"),
    entry(element("span", "wb-swatch wb-swatch-cached"), "and cached"),
    entry(element("span", "wb-swatch wb-swatch-line"), "what their tokens would fill"),
  );
}

function entry(sign, text) {
  const made = element("span", "wb-entry");
  made.append(sign, text);
  return made;
}

function sample(cells, look) {
  const picture = element("canvas", "wb-sample", { "aria-hidden": "true" });
  [picture.width, picture.height] = [SIDE * cells.length, SIDE];
  const image = new ImageData(picture.width, picture.height);
  const pixels = new Uint32Array(image.data.buffer);
  const [width, count] = [picture.width, cells.length];
  paintDetailed(pixels, width, Uint32Array.from(cells), 0, count, count, SIDE, look, null);
  picture.getContext("2d").putImageData(image, 0, 0);
  return picture;
}
