import assert from "node:assert/strict";
import { mock, test } from "node:test";
import { Cursor, join, cursors } from "../../workbench/views/js/cursor.js";
import { keyed } from "../../workbench/views/js/scrubber.js";
import { Model } from "./model.mjs";

const state = (more = {}) => ({ trace_id: "t", first_step: 0, last_step: 9, step: 3, ...more });

test("two panels of one trace share a step, others do not, and the last to leave ends it", () => {
  const [a, b] = [join(new Model(state())), join(new Model(state()))];
  const other = join(new Model(state({ trace_id: "u" })));
  a.cursor.go(7);
  assert.equal(b.cursor.step, 7);
  assert.equal(other.cursor.step, 3);
  for (const joined of [a, b, other]) joined.leave();
  assert.equal(cursors().size, 0);
});

test("the kernel hears of the step once, from one panel, when the hand rests", () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const models = [new Model(state()), new Model(state())];
  const joined = models.map(join);
  for (let step = 4; step < 9; step++) joined[1].cursor.go(step);
  assert.deepEqual(models.map((model) => model.saved.length), [0, 0]);
  mock.timers.tick(1000);
  assert.deepEqual(models.map((model) => model.saved.length), [1, 0]);
  assert.equal(models[0].saved[0].step, 8);
  for (const one of joined) one.leave();
  mock.timers.reset();
});

test("our own step said back by the kernel does not pull the reader back", () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const models = [new Model(state()), new Model(state())];
  const joined = models.map(join);
  const { cursor } = joined[0];
  cursor.go(5);
  mock.timers.tick(200);
  cursor.go(8);
  models[1].set("step", 5); // the kernel tells the other panel what it was told
  assert.equal(cursor.step, 8);
  models[1].set("step", 2); // somebody set `view.step = 2` in a cell
  assert.equal(cursor.step, 2);
  for (const one of joined) one.leave();
  mock.timers.reset();
});

test("a selection is shared, told and not pulled back by its echo", () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const models = [new Model(state()), new Model(state())];
  const joined = models.map(join);
  const { cursor } = joined[1];
  cursor.select(4);
  mock.timers.tick(200);
  assert.equal(models[0].saved[0].selected, 4);
  cursor.select(null);
  models[1].set("selected", 4);
  assert.equal(cursor.selected, null);
  models[1].set("selected", 9);
  assert.equal(cursor.selected, 9);
  for (const one of joined) one.leave();
  mock.timers.reset();
});

test("a step the kernel was not told yet is told at the end", () => {
  const model = new Model(state());
  const { cursor, leave } = join(model);
  cursor.go(6);
  leave();
  assert.equal(model.saved.at(-1).step, 6);
});

test("a live run is followed until the reader looks back, and again from its end", () => {
  const model = new Model(state({ step: 9, live: true, follow: true }));
  const { cursor, leave } = join(model);
  model.set("last_step", 12);
  assert.equal(cursor.step, 12);
  cursor.go(4);
  model.set("last_step", 15);
  assert.equal(cursor.step, 4);
  cursor.go(99);
  model.set("last_step", 18);
  assert.equal(cursor.step, 18);
  leave();
});

test("who follows does not tell the kernel its step: it would come late and look like going back", () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const model = new Model(state({ live: true, follow: true, step: 0, last_step: 0 }));
  const { cursor, leave } = join(model);
  model.set("last_step", 4);
  mock.timers.tick(1000);
  assert.deepEqual([cursor.step, model.saved.length, model.get("step")], [4, 0, 0]);
  cursor.go(2);
  mock.timers.tick(1000);
  assert.deepEqual([model.get("step"), model.get("follow")], [2, false]);
  cursor.go(4);
  mock.timers.tick(1000);
  assert.deepEqual([model.get("step"), model.get("follow")], [2, true]);
  leave();
  mock.timers.reset();
});

test("playing goes on at its rate and stops at the end", () => {
  const cursor = new Cursor();
  cursor.grow(0, 40);
  const frames = [];
  const frame = (tick) => frames.push(tick);
  cursor.play(frame);
  cursor.play(frame); // a second press of the same button before the first frame
  for (let time = 0; time <= 1000; time += 50) frames.shift()?.(time);
  assert.equal(cursor.step, cursor.rate);
  for (let time = 1050; time <= 3000; time += 50) frames.shift()?.(time);
  assert.equal(cursor.step, 40);
  assert.equal(cursor.playing, false);
  assert.equal(frames.length, 0);
});

test("keys move the step, and only keys that mean something are taken", () => {
  const cursor = new Cursor();
  cursor.grow(0, 100);
  let toggled = 0;
  let taken = 0;
  const press = (key, more = {}) =>
    keyed(
      {
        key,
        target: { tagName: "INPUT" },
        preventDefault: () => taken++,
        stopPropagation: () => {},
        ...more,
      },
      cursor,
      () => toggled++,
    );
  const steps = [];
  for (const key of ["ArrowRight", "End", "ArrowRight", "PageDown", "Home", "ArrowLeft"]) {
    press(key);
    steps.push(cursor.step);
  }
  assert.deepEqual(steps, [1, 100, 100, 90, 0, 0]);
  press("ArrowRight", { shiftKey: true });
  assert.equal(cursor.step, 10);
  press(" ");
  press(" ", { target: { tagName: "BUTTON" } }); // a button has its own meaning of space
  assert.equal(toggled, 1);
  taken = 0;
  for (const key of ["a", "Tab", "Enter"]) press(key);
  press("ArrowRight", { ctrlKey: true });
  assert.equal(taken, 0);
});
