import assert from "node:assert/strict";
import { test } from "node:test";
import { Run, STATE, WORK, laneStates, stepTokens } from "../../workbench/views/js/run_log.js";
import { columns } from "./run_columns.mjs";

test("a fork has its parent's tokens up to the fork, and then its own", () => {
  const run = new Run(columns());
  const ids = (lane) => Array.from(run.tokens(lane), (place) => run.columns.token_id[place]);
  assert.deepEqual(ids(0), [10, 11, 12]);
  assert.deepEqual(ids(1), [20, 21, 22]);
  assert.deepEqual(ids(2), [20, 21, 30]);
  assert.equal(run.tokenAt(2, 2), 30);
  assert.equal(run.tokenAt(2, 3), -1);
  assert.equal(run.name(2), "b.1");
});

test("a step that was never committed shows the one before", () => {
  const run = new Run(columns());
  assert.deepEqual([3, 4, 5, 6, 99].map((step) => run.columnAt(step)), [-1, 0, 0, 1, 2]);
});

test("a sequence id that was used again means its latest lane", () => {
  const run = new Run(columns({ lane_sequence: Uint32Array.of(7, 7, 9) }));
  assert.deepEqual([7, 9, 1, null].map((id) => run.laneOf(id)), [1, 2, -1, -1]);
});

test("a lane is there from its first change of state to the step in which it ended", () => {
  const changes = {
    change_lane: Uint32Array.of(0, 1, 0, 0),
    change_column: Uint32Array.of(0, 2, 1, 3),
    change_state: Uint8Array.of(STATE.WAITING, STATE.WAITING, STATE.RUNNING, STATE.ENDED),
  };
  const { born, gone } = laneStates(changes, 2, 9);
  assert.deepEqual([[...born], [...gone]], [[0, 2], [4, 9]]);
});

test("the tokens of a step by what they are for", () => {
  const rows = {
    row_num: Uint32Array.of(5, 1, 4, 3),
    row_work: Uint8Array.of(WORK.PREFILL, WORK.DECODE, WORK.VERIFY, WORK.RECOMPUTE),
    row_drafted: Uint16Array.of(0, 0, 3, 0),
  };
  const sums = stepTokens(rows, Uint32Array.of(0, 3, 4));
  assert.deepEqual(
    Object.fromEntries(Object.entries(sums).map(([name, values]) => [name, [...values]])),
    { prefill: [5, 0], recompute: [0, 3], decode: [2, 0], draft: [3, 0], total: [10, 3] },
  );
});
