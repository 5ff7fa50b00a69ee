import assert from "node:assert/strict";
import { test } from "node:test";
import { css, mix, pixel, rgb, sequenceColour } from "../../workbench/views/js/colours.js";

test("colours are read as CSS writes them", () => {
  assert.deepEqual(rgb("#E69F00"), [230, 159, 0]);
  assert.deepEqual(rgb("rgb(1, 2, 3)"), [1, 2, 3]);
  assert.deepEqual(rgb("rgba(0, 100, 0, 0.5)"), [128, 178, 128]);
  assert.deepEqual(rgb("rgba(0, 100, 0, 0.5)", [0, 0, 0]), [0, 50, 0]);
  assert.equal(css([1, 2, 3], 0.5), "rgba(1, 2, 3, 0.5)");
});

test("a pixel's bytes are red, green, blue, opaque", () => {
  const bytes = new Uint8Array(new Uint32Array([pixel([1, 2, 200])]).buffer);
  assert.deepEqual([...bytes], [1, 2, 200, 255]);
});

test("21 sequences have 21 colours", () => {
  const colours = Array.from({ length: 21 }, (_, n) => sequenceColour(n).join());
  assert.equal(new Set(colours).size, 21);
  assert.deepEqual(sequenceColour(21), sequenceColour(0));
  assert.deepEqual(mix([0, 0, 0], [10, 20, 30], 0.5), [5, 10, 15]);
});
