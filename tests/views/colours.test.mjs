import assert from "node:assert/strict";
import { test } from "node:test";
import { css, mix, pixel, rgb, sequenceColour, themed } from "../../workbench/views/js/colours.js";

test("colours are read as CSS writes them", () => {
  assert.deepEqual(rgb("#E69F00"), [230, 159, 0]);
  assert.deepEqual(rgb(" #fff"), [255, 255, 255]);
  assert.deepEqual(rgb("rgb(1, 2, 3)"), [1, 2, 3]);
  assert.deepEqual(rgb("rgba(1, 2, 3, 0.5)"), [1, 2, 3]);
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

test("a theme's colours lie on its paper, and what it leaves out comes from its kind", () => {
  const unset = "rgba(0, 0, 0, 0)";
  const light = { paper: "rgb(255, 255, 255)", ink: "rgba(0, 0, 0, 0.8)", faint: unset, line: unset };
  const theme = themed({ ...light, accent: "rgb(1, 2, 3)" }, true);
  assert.deepEqual([theme.dark, theme.ink, theme.accent], [false, [51, 51, 51], [1, 2, 3]]);
  assert.deepEqual(theme.faint, rgb("#616161"));
  const none = { paper: unset, ink: unset, faint: unset, line: unset, accent: unset };
  assert.equal(themed(none, true).dark, true);
  assert.deepEqual(themed(none, false).paper, [255, 255, 255]);
});
