// Lanes as pixels: what each sequence did in each step, many to a pixel where need be. No DOM.
import { STATE, WORK } from "./run_log.js";

// What a pixel shows, by rank: where several things fall on one pixel the highest is seen.
export const LOOK = {
  IDLE: 1, WAITING: 2, COMPILING: 3, AWAITING_PREFIX: 4, PAUSED: 5, PREEMPTED: 6,
  DECODE: 7, VERIFY: 8, PREFILL: 9, RECOMPUTE: 10,
};
const OF_STATE = {
  [STATE.COMPILING]: LOOK.COMPILING,
  [STATE.WAITING]: LOOK.WAITING,
  [STATE.AWAITING_PREFIX]: LOOK.AWAITING_PREFIX,
  [STATE.PREEMPTED]: LOOK.PREEMPTED,
  [STATE.PAUSED]: LOOK.PAUSED,
  [STATE.RUNNING]: LOOK.IDLE,
};
const OF_WORK = {
  [WORK.DECODE]: LOOK.DECODE,
  [WORK.VERIFY]: LOOK.VERIFY,
  [WORK.PREFILL]: LOOK.PREFILL,
  [WORK.RECOMPUTE]: LOOK.RECOMPUTE,
};

/** How strong a row is drawn, 0 to 255: a chunk by its share of the budget, a draft by acceptance. */
export function level(work, tokens, drafted, accepted, budget) {
  if (work === WORK.VERIFY) return Math.round((255 * accepted) / Math.max(1, drafted));
  if (work === WORK.DECODE) return 255;
  return Math.round(255 * Math.sqrt(Math.min(1, tokens / Math.max(1, budget))));
}

/** What is seen of each row: its look in the high byte, its level in the low one. */
export function rowLooks({ row_work, row_num, row_drafted, row_accepted }, budget) {
  return Uint16Array.from(row_work, (work, row) =>
    (OF_WORK[work] << 8) | level(work, row_num[row], row_drafted[row], row_accepted[row], budget));
}

/** The lanes that are there in the columns [from, to), in the order they came. */
export function lanesIn({ born, gone }, from, to) {
  const found = [];
  for (let lane = 0; lane < born.length; lane++)
    if (born[lane] < to && gone[lane] > from) found.push(lane);
  return found;
}

/**
 * The vertical places of some lanes in `height` pixels: {top, bottom} by lane, and one's height.
 *
 * Lanes are `most` high at most; with more of them than pixels, several share one.
 */
export function laneRows(lanes, laneCount, height, most) {
  const each = Math.min(most, height / Math.max(1, lanes.length));
  const [top, bottom] = [new Int32Array(laneCount).fill(-1), new Int32Array(laneCount).fill(-1)];
  lanes.forEach((lane, place) => {
    top[lane] = Math.floor(place * each);
    bottom[lane] = Math.max(top[lane] + 1, Math.floor((place + 1) * each));
  });
  return { top, bottom, each };
}

/**
 * Write what is seen into `looks`, [height * width]: states as thin bands, rows over them.
 *
 * columns: [from, to); toX(column): its pixels [x0, x1); run: a `Run`; rowLook: of `rowLooks`.
 */
export function paintLanes(looks, width, { run, rowLook, lanes, places, columns, toX }) {
  looks.fill(0);
  const { top, bottom, each } = places;
  const fill = (lane, x0, x1, look, inset) => {
    const [y0, y1] = [top[lane] + inset, Math.max(top[lane] + inset + 1, bottom[lane] - inset)];
    for (let y = y0; y < y1; y++) {
      const line = y * width;
      for (let x = Math.max(0, x0); x < Math.min(width, x1); x++)
        if (look > looks[line + x]) looks[line + x] = look;
    }
  };
  const within = (y, x0, x1) =>
    [x0, x1].map((x) => y * width + Math.max(0, Math.min(width, x)));
  const { change_column, change_state, row_lane } = run.columns;
  const band = each >= 5 ? Math.floor(each * 0.32) : 0;
  for (const lane of lanes) {
    const changes = run.states.changes.of(lane);
    for (let k = 0; k < changes.length; k++) {
      const look = OF_STATE[change_state[changes[k]]];
      const [from, to] = [change_column[changes[k]], change_column[changes[k + 1]] ?? run.count];
      if (!look || to <= columns[0] || from >= columns[1] || from >= to) continue;
      const x0 = toX(Math.max(from, columns[0]))[0];
      fill(lane, x0, toX(Math.min(to, columns[1]) - 1)[2], (look << 8) | 255, band);
    }
  }
  const gap = each >= 4 ? 1 : 0;
  for (let column = columns[0]; column < columns[1]; column++) {
    const [x0, x1, end] = toX(column);
    const [from, to] = run.rows(column);
    for (let row = from; row < to; row++) {
      const lane = row_lane[row];
      if (top[lane] < 0) continue;
      fill(lane, x0, x1, rowLook[row], gap);
      // the band of a running lane is for steps that left it out, not for gaps between its cells
      for (let y = top[lane]; end > x1 && y < bottom[lane]; y++) looks.fill(0, ...within(y, x1, end));
    }
  }
  return looks;
}

/** looks -> pixels, by a table of 256 levels of each look. */
export function coloured(pixels, looks, table) {
  for (let i = 0; i < looks.length; i++) pixels[i] = table[looks[i]];
  return pixels;
}

/** The lane at a height; -1 where there is none. */
export function laneAtY(y, lanes, places) {
  for (const lane of lanes) if (y >= places.top[lane] && y < places.bottom[lane]) return lane;
  return -1;
}
