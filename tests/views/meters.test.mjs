import assert from "node:assert/strict";
import { test } from "node:test";
import { placeOf, valueAt } from "../../workbench/views/js/controls.js";
import { lowerBound } from "../../workbench/views/js/buffers.js";
import { Meters, percentile, tiles } from "../../workbench/views/js/meters.js";
import { bytes, duration, short } from "../../workbench/views/js/numbers.js";
import { extremes, roundUp } from "../../workbench/views/js/series.js";

const made = () =>
  new Meters({
    step: Uint32Array.of(3, 4, 5, 9),
    time: Float64Array.of(0, 0.5, 1, 3),
    made: Uint32Array.of(2, 4, 8, 9),
    computed: Uint32Array.of(20, 22, 26, 27),
    asked: Uint32Array.of(10, 10, 20, 20),
    found: Uint32Array.of(0, 0, 8, 8),
    drafted: Uint32Array.of(0, 0, 0, 0),
    accepted: Uint32Array.of(0, 0, 0, 0),
    preempted: Uint32Array.of(0, 0, 1, 1),
    running: Uint32Array.of(1, 2, 2, 0),
    waiting: Uint32Array.of(1, 0, 0, 0),
    paused: Uint32Array.of(0, 0, 1, 0),
    used: Uint32Array.of(1, 2, 5, 0),
    ttft_row: Uint32Array.of(0, 0, 2),
    ttft_ms: Float32Array.of(10, 30, 2000),
    tpot_row: Uint32Array.of(3),
    tpot_ms: Float32Array.of(4.5),
  });

test("a step that was not recorded is shown as the one before it", () => {
  const meters = made();
  assert.deepEqual([2, 3, 4, 8, 9, 99].map((step) => meters.row(step)), [-1, 0, 1, 2, 3, 3]);
});

test("throughput is that of the last second, or of the last step where that was longer", () => {
  const meters = made();
  assert.equal(meters.rate("made", 0), null);
  assert.equal(meters.rate("made", 1), 4);
  assert.equal(meters.rate("made", 2), 6);
  assert.equal(meters.rate("made", 3), 0.5);
});

test("latencies are those known by then", () => {
  const meters = made();
  assert.deepEqual(meters.latency("ttft", 1), [10, 30]);
  assert.deepEqual(meters.latency("ttft", 3), [30, 2000]);
  assert.deepEqual(meters.latency("tpot", 2), [null, null]);
});

test("tiles say what there is, and a dash for what there is not", () => {
  const found = Object.fromEntries(tiles(made(), { num_blocks: 10 }, 2).map(([k, ...v]) => [k, v]));
  assert.deepEqual(found.TTFT, ["30 ms", "p95 2 s"]);
  assert.deepEqual(found.TPOT, ["–", "p95 –"]);
  assert.deepEqual(found.running, ["2", "0 waiting, 1 paused"]);
  assert.deepEqual(found["KV blocks"], ["50 %", "5 of 10"]);
  assert.deepEqual(found["prefix hits"], ["40 %", "of 20 tokens"]);
  assert.deepEqual(found.accepted, ["–", "no drafts"]);
});

test("numbers are short", () => {
  const values = [0, 7, 7.123, 42.55, 512.3, 9994.9, 12345, 123456, null];
  const wanted = ["0", "7", "7.12", "42.5", "512", "9995", "12.3k", "123k", "–"];
  assert.deepEqual(values.map(short), wanted);
  assert.equal(duration(1500), "1.50 s");
  assert.deepEqual([0, 1023, 1024, 3 * 2 ** 30].map(bytes), ["0 B", "1023 B", "1.0 KiB", "3.0 GiB"]);
  assert.equal(percentile([], 0.5), null);
  assert.equal(percentile([5, 1, 3], 0.5), 3);
  assert.equal(percentile([5, 1, 3], 0.95), 5);
  assert.deepEqual([0, 1, 1.5, 9].map((x) => lowerBound([1, 2, 2, 8], x)), [0, 0, 1, 4]);
});

test("a scale ends at a round number and a column knows its extremes", () => {
  assert.deepEqual([0, 0.3, 1, 3, 70, 100, 101].map(roundUp), [1, 0.5, 1, 5, 100, 100, 200]);
  assert.deepEqual(extremes([4, 1, 9, 2], 1, 4), [1, 9]);
});

test("a slider's places are powers of two", () => {
  assert.deepEqual([0, 5, 13].map(valueAt), [1, 32, 8192]);
  assert.deepEqual([1, 32, 48, 100_000].map(placeOf), [0, 5, 6, 13]);
});
