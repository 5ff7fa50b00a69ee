import assert from "node:assert/strict";
import { test } from "node:test";
import { linesFrom, spanOf } from "../../workbench/views/js/code_pane.js";
import {
  axesOf, cellOf, cividis, configAt, configKey, layOut, MEASURES, shareOf, step,
} from "../../workbench/views/js/config_space.js";
import { cellAt, gridBox } from "../../workbench/views/js/kernel_charts.js";
import { rates, roof, roofAt, rooflinePoints, trialTiles } from "../../workbench/views/js/kernel_figures.js";

const SPACE = { M: [16, 32, 64], N: [32, 64], num_warps: [4, 8] };
const configs = SPACE.M.flatMap((M) => SPACE.N.flatMap((N) => SPACE.num_warps.map((num_warps) => ({ M, N, num_warps }))));

test("a configuration's key does not hang on the order of its names", () => {
  assert.equal(configKey({ b: 1, a: 2 }), "a=2 b=1");
  assert.equal(configKey({ a: 2, b: 1 }), "a=2 b=1");
});

test("axes hold the space's values and those that a default has beside it, ascending", () => {
  const axes = axesOf(SPACE, [{ M: 48, N: 32, num_warps: 4 }]);
  assert.deepEqual(axes[0], { name: "M", values: [16, 32, 48, 64] });
});

test("every configuration has a cell of its own, and the cell leads back to it", () => {
  const layout = layOut(axesOf(SPACE, configs));
  assert.equal(layout.width * layout.height, configs.length);
  const cells = new Set();
  for (const config of configs) {
    const place = cellOf(layout, config);
    cells.add(place.join());
    assert.deepEqual(configAt(layout, ...place), config);
  }
  assert.equal(cells.size, configs.length);
  assert.equal(cellOf(layout, { M: 5, N: 32, num_warps: 4 }), null);
});

test("the grid is about twice as wide as high", () => {
  const axes = [2, 4, 8, 2].map((n, k) => ({ name: `p${k}`, values: [...Array(n).keys()] }));
  const { width, height } = layOut(axes);
  assert.deepEqual([width * height, width / height], [128, 2]);
});

test("an arrow goes over cells that are not there, and stops at the edge", () => {
  const layout = { width: 4, height: 2 };
  const exists = (x, y) => (x + y) % 2 === 0;
  assert.deepEqual(step(layout, [0, 0], [1, 0], exists), [2, 0]);
  assert.equal(step(layout, [2, 0], [1, 0], exists), null);
  assert.equal(step(layout, [0, 0], [0, -1], exists), null);
});

test("a point of the canvas is a cell, or beside the grid", () => {
  const layout = { width: 4, height: 2 };
  const box = gridBox({ width: 416, height: 142 }, layout);
  assert.deepEqual(box.cell, [100, 50]);
  assert.deepEqual(cellAt(box, layout, box.left + 150, box.top + 60), [1, 1]);
  assert.equal(cellAt(box, layout, box.left - 1, box.top + 1), null);
  assert.equal(cellAt(box, layout, box.left + 401, box.top + 1), null);
});

test("shares are logarithmic where they can be", () => {
  assert.equal(shareOf(10, 1, 100), 0.5);
  assert.equal(shareOf(5, 0, 10), 0.5);
  assert.equal(shareOf(3, 3, 3), 0);
  assert.deepEqual(cividis(0), [0, 34, 78]);
  assert.deepEqual(cividis(2), [254, 232, 56]);
});

const FACTS = {
  num_bytes: 4e9, flops: 8e9,
  ceilings: { copy: 3.5e12, read: 4e12, gemm: 8e14 },
  finals: { library: { p50: 3000 } },
};
const TRIAL = {
  config: {}, status: "ok", us: { p10: 1990, p50: 2000, p90: 2010, n: 120, rel_error: 0.001 },
  default_us: 2200, max_err: 0.01, share: 0.5,
};

test("rates and the roof: half the bandwidth is half the ceiling", () => {
  const found = rates(FACTS, 2000);
  assert.equal(found.bandwidth, 2e12);
  assert.ok(Math.abs(found.share - 0.5) < 1e-12);
  const top = roof(FACTS);
  assert.deepEqual([top.intensity, top.ridge], [2, 200]);
  assert.equal(roofAt(top, 2), 8e12);
  assert.equal(roofAt(top, 1e6), 8e14);
  assert.equal(roof({ num_bytes: 1, flops: 1 }), null);
});

test("the roofline has every trial that was timed, the library and what is selected", () => {
  const rows = [TRIAL, { status: "wrong", us: null }];
  const points = rooflinePoints(TRIAL, rows, FACTS);
  assert.deepEqual(points.map(({ name }) => name), ["", "library", "selected"]);
  assert.deepEqual(rooflinePoints(TRIAL, rows, {}), []);
});

test("figures say what was measured, and make no time up", () => {
  const tiles = Object.fromEntries(trialTiles(TRIAL, [], FACTS).map(([name, figure]) => [name, figure]));
  assert.equal(tiles.latency, "2000 µs");
  assert.equal(tiles["against the default"], "1.10×");
  assert.equal(tiles["against the library"], "1.50×");
  assert.equal(tiles["of the ceiling"], "50 %");
  const bare = trialTiles({ ...TRIAL, us: null, default_us: null }, null, FACTS);
  assert.deepEqual(bare.map(([name, figure]) => [name, figure])[0], ["latency", "–"]);
  assert.ok(!bare.some(([name]) => name === "traffic"));
});

test("a measure of what is not known is null", () => {
  assert.equal(MEASURES.latency.of({ us: null }), null);
  assert.equal(MEASURES.registers.of({}, undefined), null);
  assert.equal(MEASURES.spills.of({}, [{ spills: 0 }, { spills: 3 }]), 3);
});

test("a source line lights up the lines that come from it", () => {
  assert.deepEqual(linesFrom([0, 7, 8, 7], 7), [1, 3]);
  assert.deepEqual(spanOf([0, 12, 9], 2), [7, 14]);
  assert.equal(spanOf([0, 0]), null);
});
