import assert from "node:assert/strict";
import { test } from "node:test";
import { alternatives, placeAt, strength } from "../../workbench/views/js/token_facts.js";
import { TokenTexts, shortened, visible } from "../../workbench/views/js/token_text.js";

const texts = new TokenTexts({
  known_ids: [1, 2, 3, 4, 5, 6],
  known_texts: ["def", " f\n", "\udce6\udc97", "\udca5", "\udcff", "a\udcc3"],
});

test("a token by itself: white space is seen, bytes are numbers, an unknown one is its id", () => {
  assert.deepEqual([1, 2, 3, 9, -1].map((id) => texts.shown(id)), ["def", "·f↵", "<E6><97>", "<9>", "?"]);
});

test("tokens that make up a character show it once, at its last token", () => {
  assert.deepEqual(texts.run([1, 3, 4, 2]), ["def", "", "日", " f\n"]);
});

test("bytes that make up nothing are numbers, and what follows them is not eaten", () => {
  assert.deepEqual(texts.run([5, 1]), ["<FF>", "def"]);
  assert.deepEqual(texts.run([3, 1, 3]), ["<E6><97>", "def", "<E6><97>"]);
  assert.deepEqual(texts.run([6]), ["a<C3>"]);
});

test("shortening counts characters, and says that there is more", () => {
  assert.equal(shortened("日本語のテキスト", 4), "日本語…");
  assert.equal(shortened("日本語", 3), "日本語");
  assert.equal(visible("\ta b\n"), "⇥a·b↵");
});

test("surprise: nothing for a certain or an unknown token, all of it from six bits on", () => {
  assert.deepEqual([0, NaN, Math.log(0.5), Math.log(1 / 64), -99].map(strength).map((x) => Math.round(x * 60)),
    [0, 0, 10, 60, 60]);
});

test("the last token that is there in a step", () => {
  const column = Int32Array.of(-1, -1, 3, 3, 8);
  const places = Uint32Array.of(0, 1, 2, 3, 4);
  assert.deepEqual([-1, 2, 3, 7, 8].map((at) => placeAt(places, column, at)), [1, 1, 3, 3, 4]);
  assert.equal(placeAt(Uint32Array.of(4), column, 0), 0);
});

test("alternatives are one token's own, best first, and mark the one that was taken", () => {
  const columns = {
    top_token: Uint32Array.of(2, 4, 4, 4, 6),
    top_id: Uint32Array.of(9, 1, 2, 3, 9),
    top_logprob: Float32Array.of(0, -2, -1, -3, 0),
    token_id: Uint32Array.of(0, 0, 0, 0, 3),
  };
  const found = alternatives({ columns }, 4);
  assert.deepEqual(found.map(([id, , taken]) => [id, taken]), [[2, false], [1, false], [3, true]]);
  assert.deepEqual(alternatives({ columns }, 3), []);
});
