// The timeline's colours on a theme, and the legend of what is in view.
import { mix, pixel, rgb } from "./colours.js";
import { LOOK } from "./lane_paint.js";
import { WORK } from "./run_log.js";
import { legend } from "./run_panel.js";

const LOOK_HUES = {
  [LOOK.DECODE]: "#009E73", [LOOK.VERIFY]: "#CC79A7", [LOOK.PREFILL]: "#0072B2",
  [LOOK.RECOMPUTE]: "#D55E00", [LOOK.PREEMPTED]: "#E69F00", [LOOK.AWAITING_PREFIX]: "#56B4E9",
  [LOOK.COMPILING]: "#F0E442",
};
const PART_HUES = { schedule: "#E69F00", sample: "#CC79A7", commit: "#56B4E9", other: "#F0E442" };
export const WORK_LOOKS = {
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

/** Black or white, whichever can be read on a colour. */
export function inkOn([r, g, b]) {
  return 0.3 * r + 0.59 * g + 0.11 * b > 140 ? [0, 0, 0] : [255, 255, 255];
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
export function showLegend(view, { looks, parts }, colours) {
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
