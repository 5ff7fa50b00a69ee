import assert from "node:assert/strict";
import { test } from "node:test";
import { adapterCells, COLUMNS, hitShare, loraTiles, NOBODY, ownerRuns, rowOwners } from "../../workbench/views/js/lora_words.js";

const adapter = (name, changes = {}) => ({
  name, tier: "device", pinned: false, leaving: false, rank: 2, bytes: 2048, rows: [], requests: 3,
  hits: 2, misses: 1, ms: {}, rate: 0, tokens: 9, running: 1, ...changes,
});

test("rank rows have the owners that adapters say, in runs", () => {
  const owners = rowOwners([adapter("a", { rows: [1, 2] }), adapter("b", { rows: [5, 0] })], 6);
  assert.deepEqual([...owners], [1, 0, 0, NOBODY, NOBODY, 1]);
  assert.deepEqual(ownerRuns(owners), [[1, 0, 1], [0, 1, 2], [NOBODY, 3, 2], [1, 5, 1]]);
  assert.deepEqual(ownerRuns(rowOwners([], 0)), []);
});

test("a row says tier, size, hits and what its moves took", () => {
  const cells = adapterCells(adapter("sql", { pinned: true, ms: { read: 12.3, "to device": 0.5 }, rate: 40.5 }));
  assert.equal(cells.length, COLUMNS.length);
  assert.deepEqual(cells, [
    "sql", "device, pinned", "2", "2.0 KiB", "3", "1", "40.5", "67 % of 3", "read 12.3 ms, to device 0.50 ms",
  ]);
  assert.equal(adapterCells(adapter("x"))[8], "–");
});

test("tiles count tiers and sum what goes through adapters", () => {
  const device = {
    num_rows: 8, num_free: 6, bounded: true, device_bytes: 4096, host_bytes: 2048, host_limit: null,
    base: { rate: 1, requests: 4 },
  };
  const rows = [adapter("a", { rate: 3 }), adapter("b", { tier: "disk", rate: 4, hits: 0, misses: 1 })];
  const tiles = Object.fromEntries(loraTiles(rows, device).map(([name, ...rest]) => [name, rest]));
  assert.deepEqual(tiles.adapters, ["2", "1 device, 0 host, 1 disk"]);
  assert.deepEqual(tiles["rank rows"], ["2 of 8", "fixed"]);
  assert.deepEqual(tiles.hits, ["50 %", "2 brought to the device"]);
  assert.deepEqual(tiles["through adapters"], ["7 tok/s", "6 requests"]);
  assert.deepEqual(tiles["in host memory"], ["2.0 KiB", "no bound"]);
  assert.deepEqual(tiles.base, ["1 tok/s", "4 requests"]);
  assert.equal(hitShare(0, 0), "–");
});
