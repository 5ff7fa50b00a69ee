import assert from "node:assert/strict";
import { test } from "node:test";
import { deflateSync } from "node:zlib";
import { scrub, typed, unpack, upperBound } from "../../workbench/views/js/buffers.js";

test("a typed array is a window where the bytes are aligned, and a copy where not", () => {
  const bytes = new Uint8Array([9, 1, 0, 0, 0, 2, 0, 0, 0, 7]);
  const apart = new DataView(bytes.buffer, 1, 8);
  assert.deepEqual([...typed(Uint32Array, apart)], [1, 2]);
  const aligned = new Uint32Array([3, 4]);
  const window = typed(Uint32Array, new DataView(aligned.buffer));
  aligned[0] = 5;
  assert.deepEqual([...window], [5, 4]);
  assert.deepEqual([...typed(Uint16Array, bytes.buffer)], [265, 0, 512, 0, 1792]);
});

test("what Python packs is unpacked, from any offset, and nothing gives nothing", async () => {
  const values = new Uint32Array([1, 70000, 4294967295]);
  const packed = deflateSync(new Uint8Array(values.buffer));
  const inside = new Uint8Array(packed.length + 3);
  inside.set(packed, 3);
  const shifted = new DataView(inside.buffer, 3);
  assert.deepEqual([...(await unpack(Uint32Array, shifted))], [...values]);
  assert.equal((await unpack(Uint16Array, new DataView(new ArrayBuffer(0)))).length, 0);
  assert.equal((await unpack(Uint16Array, null)).length, 0);
});

test("any walk over the steps ends in the state of its last step", () => {
  const [size, steps] = [50, 40];
  let seed = 7;
  const random = (n) => (seed = (seed * 1103515245 + 12345) % 2147483648) % n;
  const states = [new Uint32Array(size).map(() => random(1 << 30))];
  const [places, masks, starts] = [[], [], [0, 0]]; // step 0 is the frame itself
  for (let step = 1; step < steps; step++) {
    const state = states[step - 1].slice();
    for (const place of new Set([random(size), random(size), random(size)])) {
      const mask = random(1 << 30) || 1;
      places.push(place);
      masks.push(mask);
      state[place] ^= mask;
    }
    starts.push(places.length);
    states.push(state);
  }
  const cells = states[0].slice();
  let at = 0;
  for (let k = 0; k < 300; k++) {
    const to = k === 0 ? steps - 1 : random(steps);
    scrub(cells, places, masks, starts, at, to);
    at = to;
    assert.deepEqual(cells, states[to], `step ${to}`);
  }
});

test("upperBound finds the place after the last value that is not greater", () => {
  assert.deepEqual(
    [0, 1, 2, 3, 9].map((x) => upperBound([1, 1, 3], x)),
    [0, 2, 2, 3, 3],
  );
});
