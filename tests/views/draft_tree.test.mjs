import assert from "node:assert/strict";
import { test } from "node:test";
import { binning } from "../../workbench/views/js/acceptance_strip.js";
import { boxesOf } from "../../workbench/views/js/draft_draw.js";
import {
  acceptance, boxAt, depthsOf, draftDepths, draftsIn, overall, placed, treeOf,
} from "../../workbench/views/js/draft_tree.js";
import { upperBound } from "../../workbench/views/js/buffers.js";
import { Run } from "../../workbench/views/js/run_log.js";
import { columns } from "./run_columns.mjs";

/** Two drafts: a tree of five of which 1 and 3 are accepted, and a chain of two, all rejected. */
function run() {
  const made = new Run(
    columns({
      draft_lane: Uint32Array.of(0, 1),
      draft_column: Uint32Array.of(0, 2),
      draft_at: Uint32Array.of(2, 1),
      draft_bonus: Uint32Array.of(99, 98),
      draft_nodes: Uint32Array.of(5, 2),
      node_token: Uint32Array.of(50, 51, 52, 53, 54, 60, 61),
      node_parent: Int32Array.of(-1, -1, 0, 1, 1, -1, 0),
      node_accepted: Uint8Array.of(0, 1, 0, 1, 0, 0, 0),
      node_probability: Float32Array.of(0.5, 0.25, 1, 0.5, 0.125, NaN, NaN),
    }),
  );
  made.draftDepth = draftDepths(made);
  return made;
}

test("the tree to draw begins with the last known token and ends with the model's own", () => {
  const tree = treeOf(run(), 0);
  assert.deepEqual(tree.tokens, [11, 50, 51, 52, 53, 54, 99]);
  assert.deepEqual(tree.parents, [-1, 0, 0, 1, 2, 2, 4]);
  assert.deepEqual(tree.kinds, ["root", "rejected", "accepted", "rejected", "accepted", "rejected", "added"]);
  assert.deepEqual([...tree.depths], [0, 1, 1, 2, 2, 2, 3]);
});

test("what the model took is the straight line on top, and no two nodes share a place", () => {
  const { kinds, rows, depths, height } = treeOf(run(), 0);
  kinds.forEach((kind, node) => kind !== "rejected" && assert.equal(rows[node], 0, kind));
  const places = new Set(Array.from(rows, (row, node) => `${row} ${depths[node]}`));
  assert.equal(places.size, kinds.length);
  assert.equal(height, 3);
});

test("nothing accepted: the model's token stands beside the rejected draft", () => {
  const { parents, rows } = treeOf(run(), 1);
  assert.deepEqual(parents, [-1, 0, 1, 0]);
  assert.deepEqual([...rows], [0, 1, 1, 0]);
});

test("a pointer finds the box under it; boxes of any tree lie apart and within the width", () => {
  const parents = Array.from({ length: 64 }, (_, node) => (node ? Math.floor((node - 1) / 2) : -1));
  const tree = placed(parents, parents.map(() => "rejected"));
  const { boxes, height } = boxesOf(tree, 900);
  boxes.forEach(([x, y, wide, high], node) => {
    assert.equal(boxAt(boxes, x + wide / 2, y + high / 2), node);
    assert.ok(x + wide <= 900 && y + high <= height);
  });
  assert.equal(boxAt(boxes, 899, 1), -1);
});

test("acceptance by position counts a draft where it was deep enough", () => {
  const found = acceptance(run(), 3, 2, 2); // two columns a bin
  assert.deepEqual([...found.tried], [1, 1, 1, 1, 0, 0]);
  assert.deepEqual([...found.accepted], [1, 0, 1, 0, 0, 0]);
  assert.deepEqual(overall(found, 0, 2), [2, 1]);
  assert.deepEqual([...depthsOf([-1, 0, 1, 0])], [1, 2, 3, 2]);
  assert.deepEqual(draftsIn(run().columns.draft_column, 2, upperBound), [1, 2]);
  assert.deepEqual(draftsIn(run().columns.draft_column, 1, upperBound), [1, 1]);
});

test("all steps fit, however many there are", () => {
  for (const count of [1, 100, 160, 161, 4000]) {
    const { each, bins } = binning(count, 800);
    assert.ok(bins * 5 <= 800 && each * bins >= count && each * (bins - 1) < count, String(count));
  }
});
