import assert from "node:assert/strict";
import { test } from "node:test";
import {
  brief, columnNear, columnsIn, panned, roundUp, showing, stepAxis, ticks, timeAxis, wholeOf, zoomed,
} from "../../workbench/views/js/span_axis.js";

const times = () =>
  timeAxis(
    {
      step_end: Float64Array.of(1.010, 1.030, 1.100),
      step_run: Float32Array.of(0.010, 0.010, 0.020),
      step_commit: Float32Array.of(0, 0, 0.005),
    },
    ["run", "commit"],
  );

test("milliseconds begin with the first step and keep the gaps between steps", () => {
  const { left, right } = times();
  assert.deepEqual([...left].map(Math.round), [0, 20, 75]);
  assert.deepEqual([...right].map(Math.round), [10, 30, 100]);
});

test("a step that seems to begin before the last one ended begins when it ended", () => {
  const axis = timeAxis({ step_end: Float64Array.of(1, 1.001), step_run: Float32Array.of(0.5, 0.5) }, ["run"]);
  assert.ok(axis.left[1] >= axis.right[0]);
  assert.ok(axis.right[1] > axis.left[1]);
});

test("zooming keeps what is under the pointer there, within the run and not closer than four steps", () => {
  const axis = stepAxis(100);
  const whole = wholeOf(axis);
  const close = zoomed(whole, 0.5, 30, axis);
  assert.deepEqual(close, [15, 65]);
  assert.deepEqual(zoomed(close, 0.001, 30, axis).map((x) => Math.round(x * 10) / 10), [28.8, 32.8]);
  assert.deepEqual(zoomed(close, 100, 30, axis), whole);
  assert.deepEqual(panned(close, -99, axis), [0, 50]);
  assert.deepEqual(panned(close, 99, axis), [50, 100]);
});

test("a step outside is brought into view, one inside moves nothing", () => {
  const axis = stepAxis(100);
  const window = [40, 60];
  assert.equal(showing(window, 50, axis), window);
  for (const column of [3, 97]) {
    const [from, to] = showing(window, column, axis);
    assert.ok(from <= column && column + 1 <= to && to - from === 20);
  }
});

test("the columns of a window are those that it shows a part of", () => {
  const axis = times();
  assert.deepEqual(columnsIn([0, 100], axis), [0, 3]);
  assert.deepEqual(columnsIn([12, 18], axis), [1, 1]); // a gap
  assert.deepEqual(columnsIn([5, 76], axis), [0, 3]);
  assert.deepEqual(columnsIn([2, 4], stepAxis(9)), [2, 4]);
  assert.deepEqual(columnsIn([0, 4], stepAxis(0)), [0, 0]);
});

test("a pointer finds the column under it, and in a gap the nearer one", () => {
  const axis = times();
  assert.deepEqual([-5, 5, 12, 18, 25, 40, 60, 999].map((at) => columnNear(at, axis)), [0, 0, 0, 1, 1, 1, 2, 2]);
  assert.equal(columnNear(3, stepAxis(0)), -1);
});

test("ticks are round numbers inside, whole for steps", () => {
  assert.deepEqual(ticks(0, 10, 5), [0, 2, 4, 6, 8, 10]);
  assert.deepEqual(ticks(0.13, 0.34, 4), [0.2, 0.3]);
  assert.deepEqual(ticks(3, 6, 10, true), [3, 4, 5, 6]);
  assert.deepEqual([0, 0.3, 7, 48, 101].map(roundUp), [1, 0.3, 7.5, 50, 150]);
  assert.deepEqual([brief(0.0004), brief(1.234), brief(12.34), brief(123.4, "ms")], ["0.0004", "1.23", "12.3", "123 ms"]);
});
