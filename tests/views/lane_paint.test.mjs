import assert from "node:assert/strict";
import { test } from "node:test";
import {
  LOOK, coloured, laneAtY, laneRows, lanesIn, level, paintLanes, rowLooks,
} from "../../workbench/views/js/lane_paint.js";
import { Run, STATE, WORK } from "../../workbench/views/js/run_log.js";
import { runsOf, stacked, tallest } from "../../workbench/views/js/strips.js";
import { columns } from "./run_columns.mjs";

const at = (column) => [column * 3, column * 3 + 2, column * 3 + 3]; // three pixels, one a gap

/** Two lanes over three steps: one prefills and decodes, the other waits, then is preempted. */
function run() {
  return new Run(
    columns({
      step_rows: Uint32Array.of(1, 2, 1),
      row_lane: Uint32Array.of(0, 0, 1, 0),
      row_num: Uint32Array.of(64, 1, 16, 1),
      row_work: Uint8Array.of(WORK.PREFILL, WORK.DECODE, WORK.RECOMPUTE, WORK.DECODE),
      row_drafted: new Uint16Array(4),
      row_accepted: new Uint16Array(4),
      change_lane: Uint32Array.of(0, 1, 1, 1),
      change_column: Uint32Array.of(0, 0, 1, 2),
      change_state: Uint8Array.of(STATE.RUNNING, STATE.WAITING, STATE.RUNNING, STATE.PREEMPTED),
      change_seconds: new Float64Array(4),
    }),
  );
}

function paint(height, lanes = [0, 1]) {
  const one = run();
  const places = laneRows(lanes, one.laneCount, height, 16);
  const looks = new Uint16Array(9 * height).fill(7);
  const rowLook = rowLooks(one.columns, 64);
  paintLanes(looks, 9, { run: one, rowLook, lanes, places, columns: [0, 3], toX: at });
  const line = (y) => Array.from(looks.subarray(9 * y, 9 * y + 9), (look) => look >> 8);
  return { line, looks };
}

test("rows fill their lane, states are bands in the middle, gaps stay between steps", () => {
  const { line } = paint(20); // ten pixels each
  const { PREFILL, DECODE, RECOMPUTE, WAITING, PREEMPTED } = LOOK;
  assert.deepEqual(line(5), [PREFILL, PREFILL, 0, DECODE, DECODE, 0, DECODE, DECODE, 0]);
  assert.deepEqual(line(15), [WAITING, WAITING, WAITING, RECOMPUTE, RECOMPUTE, 0, PREEMPTED, PREEMPTED, PREEMPTED]);
  assert.deepEqual(line(11).slice(0, 3), [0, 0, 0], "a waiting request is a thin band");
  assert.equal(line(11)[3], RECOMPUTE);
});

test("of several lanes on one pixel, work is seen over waiting", () => {
  const { line } = paint(1);
  assert.deepEqual(line(0).filter((_, x) => x % 3 === 0), [LOOK.PREFILL, LOOK.RECOMPUTE, LOOK.DECODE]);
});

test("of two rows on one pixel the costlier work is seen, whichever comes first", () => {
  const squeezed = () => [0, 1, 1];
  const one = run();
  const looks = new Uint16Array(1);
  const rowLook = rowLooks(one.columns, 64);
  const places = laneRows([0, 1], one.laneCount, 1, 16);
  paintLanes(looks, 1, { run: one, rowLook, lanes: [0, 1], places, columns: [1, 3], toX: squeezed });
  assert.equal(looks[0] >> 8, LOOK.RECOMPUTE); // the last step decodes
});

test("a lane that is not shown is not painted", () => {
  const { looks } = paint(10, [0]);
  assert.ok(!looks.some((look) => look >> 8 === LOOK.RECOMPUTE));
});

test("a chunk is as strong as its share of the budget, a draft as what was accepted of it", () => {
  assert.equal(level(WORK.PREFILL, 64, 0, 0, 64), 255);
  assert.equal(level(WORK.PREFILL, 16, 0, 0, 64), 128);
  assert.equal(level(WORK.DECODE, 1, 0, 0, 64), 255);
  assert.deepEqual([0, 2, 4].map((yes) => level(WORK.VERIFY, 5, 4, yes, 64)), [0, 128, 255]);
});

test("lanes of a window, their rows, and the lane under a pointer", () => {
  const states = { born: Uint32Array.of(0, 5, 9), gone: Uint32Array.of(4, 9, 12) };
  assert.deepEqual(lanesIn(states, 4, 9), [1]);
  assert.deepEqual(lanesIn(states, 3, 10), [0, 1, 2]);
  const places = laneRows([1, 2], 3, 100, 16);
  assert.equal(places.each, 16);
  assert.deepEqual([0, 15, 16, 31, 32].map((y) => laneAtY(y, [1, 2], places)), [1, 1, 2, 2, -1]);
  const many = laneRows(Array.from({ length: 300 }, (_, k) => k), 300, 100, 16);
  assert.ok(many.bottom[299] <= 100 && many.top[299] === 99);
});

test("pixels come from the table", () => {
  const table = new Uint32Array(16 * 256);
  table[(LOOK.DECODE << 8) | 255] = 0xff00ff00;
  assert.deepEqual([...coloured(new Uint32Array(2), Uint16Array.of(0, (LOOK.DECODE << 8) | 255), table)], [0, 0xff00ff00]);
});

test("where steps share a pixel the tallest stands for them", () => {
  const squeezed = (column) => [Math.floor(column / 2), Math.floor(column / 2) + 1];
  const found = tallest(3, [0, 6], squeezed, [1, 9, 3, 2, 0, 0]);
  assert.deepEqual([...found], [1, 2, 4]);
  assert.deepEqual(runsOf(Int32Array.of(5, 5, -1, 5, 6)), [[5, 0, 2], [5, 3, 4], [6, 4, 5]]);
  const layers = [[1, 2], [10, 20], [100, 200]].map((values) => ({ values }));
  const below = stacked(layers);
  assert.deepEqual(layers.map(({ values }) => below(values, 1)), [0, 2, 22]);
});
