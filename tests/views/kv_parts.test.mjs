import assert from "node:assert/strict";
import { test } from "node:test";
import {
  hit,
  layOut,
  looks,
  paintDetailed,
  paintFlat,
} from "../../workbench/views/js/kv_grid.js";
import { moved, spoken } from "../../workbench/views/js/kv_cursor.js";
import { fillOf, isFindable, isOnHost, ownerOf, referencesOf } from "../../workbench/views/js/kv_log.js";
import { Sequences } from "../../workbench/views/js/sequences.js";

const theme = { dark: false, paper: [255, 255, 255], ink: [0, 0, 0] };
const cell = ({ owner = -1, fill = 0, references = 0, findable = 0, host = 0 }) =>
  ((owner + 1) | (fill << 19) | (references << 27) | (findable << 30) | (host << 31)) >>> 0;

test("a cell is taken apart as it was put together", () => {
  const packed = cell({ owner: 524286, fill: 255, references: 7, findable: 1, host: 1 });
  assert.equal(packed, 0xffffffff);
  assert.equal(ownerOf(packed), 524286);
  assert.deepEqual([fillOf(packed), referencesOf(packed), isFindable(packed), isOnHost(packed)], [255, 7, 1, 1]);
  assert.equal(ownerOf(0), -1);
});

test("cells fit the width and, where they can, the height; every cell is hit where it is drawn", () => {
  for (const [count, width, height] of [[1, 300, 100], [96, 790, 380], [5000, 790, 380], [100000, 790, 380], [7, 5, 5]]) {
    const shape = layOut(count, width, height);
    assert.ok(shape.columns * shape.size <= Math.max(width, shape.size));
    assert.ok(shape.columns * shape.rows >= count);
    assert.ok(shape.rows * shape.size <= (shape.size > 2 ? 1 : 1.7) * height || shape.size === 1);
    for (const i of [0, count >> 1, count - 1]) {
      const x = (i % shape.columns) * shape.size + shape.size / 2;
      const y = Math.floor(i / shape.columns) * shape.size + shape.size / 2;
      assert.equal(hit(shape, count, x, y), i);
    }
    assert.equal(hit(shape, count, -1, 0), -1);
    assert.equal(hit(shape, count, shape.columns * shape.size + 1, 0), -1);
    assert.equal(hit(shape, count, 0, shape.rows * shape.size + 1), -1);
  }
});

test("a pixel per cell: fuller is stronger, blank is blank, and what is not chosen is dimmed", () => {
  const look = looks(theme, 16);
  const cells = Uint32Array.of(
    0,
    cell({ owner: 3, fill: 16, references: 1 }),
    cell({ owner: 3, fill: 4, references: 1 }),
    cell({ owner: 3, fill: 16, findable: 1 }),
  );
  const pixels = new Uint32Array(6);
  paintFlat(pixels, cells, 0, 4, look, null);
  assert.equal(new Set(pixels.subarray(0, 4)).size, 4);
  assert.deepEqual([pixels[0], pixels[1]], [look.blank, look.full[3]]);
  assert.deepEqual([pixels[4], pixels[5]], [look.gap, look.gap]);
  paintFlat(pixels, cells, 0, 4, look, Uint8Array.of(0, 1, 0, 0));
  assert.deepEqual([...pixels.subarray(0, 4)], [look.blank, look.full[3], look.dim[3], look.dim[3]]);
});

test("a detailed cell is filled from below, with a corner where it is shared", () => {
  const look = looks(theme, 16);
  const side = 14;
  const paint = (...cells) => {
    const pixels = new Uint32Array(side * side * cells.length);
    const width = side * cells.length;
    paintDetailed(pixels, width, Uint32Array.from(cells), 0, cells.length, cells.length, side, look, null);
    return (column, x, y) => pixels[y * width + column * side + x];
  };
  const half = paint(0, cell({ owner: 1, fill: 8, references: 1 }));
  assert.equal(half(0, 5, 5), look.blank);
  assert.equal(half(1, 2, 1), look.pale[1]);
  assert.equal(half(1, 2, 10), look.full[1]);
  assert.equal(half(1, side - 1, 5), look.gap);
  const shared = paint(cell({ owner: 1, fill: 16, references: 2, host: 1 }));
  assert.equal(shared(0, 11, 0), look.contrast[1]);
  assert.equal(shared(0, 0, 11), look.ink);
  assert.equal(shared(0, 1, 1), look.full[1]);
  const cached = paint(cell({ owner: 1, fill: 16, findable: 1 }));
  const seen = new Set([0, 1, 2, 3].map((x) => cached(0, x, 0)));
  assert.deepEqual(seen, new Set([look.cached[1], look.blank]));
});

test("tokens that came in chunks are read across them, and unknown ones are shown by id", () => {
  const sequences = new Sequences({
    sequence_ids: [40, 41],
    branches: [0, 2],
    request_ids: ["a", "<b>"],
    chunk_sequence: [0, 1, 0, 0],
    chunk_count: [3, 2, 1, 2],
    token_ids: [1, 2, 3, 50, 51, 4, 5, 6],
    known_ids: [2, 3, 4],
    known_texts: ["two", " three", "\n"],
  });
  assert.deepEqual(sequences.tokens(0, 0, 99), [1, 2, 3, 4, 5, 6]);
  assert.deepEqual(sequences.tokens(0, 2, 3), [3, 4, 5]);
  assert.deepEqual(sequences.tokens(1, 1, 5), [51]);
  assert.equal(sequences.text([1, 2, 3, 4]), "<1>two three\n");
  assert.equal(sequences.title(1), "<b> (sequence 41, branch 2)");
  assert.equal(sequences.row(41), 1);
  assert.equal(sequences.row(99), undefined);
});

test("keys take the cell cursor over the grid and never off it", () => {
  const shape = { columns: 4 };
  const go = (cell, ...keys) => keys.reduce((at, key) => moved(shape, 10, at, `Arrow${key}`), cell);
  assert.equal(go(-1, "Down"), 0, "the first key shows where it is");
  assert.equal(go(0, "Right", "Down", "Down"), 9);
  assert.equal(go(9, "Down"), 9);
  assert.equal(go(9, "Right"), 9);
  assert.equal(go(2, "Up"), 2);
  assert.equal(go(0, "Left"), 0);
  assert.equal(go(7, "Left", "Up"), 2);
  assert.equal(moved(shape, 10, 3, "End"), null);
  assert.equal(spoken([["block", "3"], ["", "and 2 more"]]), "block 3; and 2 more");
});
