import assert from "node:assert/strict";
import { test } from "node:test";
import { perFrame } from "../../workbench/views/js/panel.js";

test("however often a drawing is asked for, a frame draws once", () => {
  const frames = [];
  let drawn = 0;
  const ask = perFrame(() => drawn++, (f) => frames.push(f), () => frames.splice(0));
  for (let k = 0; k < 5; k++) ask();
  assert.equal(frames.length, 1);
  frames.shift()();
  assert.equal(drawn, 1);
  ask();
  ask.cancel();
  ask();
  assert.equal(frames.length, 1);
});
