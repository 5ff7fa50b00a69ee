// The columns of a small run, for tests.
const none = (T = Uint32Array) => new T(0);
/** Two requests and a fork of the second, over three steps. */
export function columns(more = {}) {
  return {
    lane_sequence: Uint32Array.of(7, 8, 9),
    lane_branch: Uint32Array.of(0, 0, 1),
    lane_prompt: Uint32Array.of(2, 1, 1),
    lane_parent: Int32Array.of(-1, -1, 1),
    lane_forked: Uint32Array.of(0, 0, 2),
    requests: ["a", "b", "b"],
    token_lane: Uint32Array.of(0, 0, 1, 0, 1, 2, 1),
    token_id: Uint32Array.of(10, 11, 20, 12, 21, 30, 22),
    token_column: Int32Array.of(-1, -1, -1, 0, 1, 2, 2),
    step_number: Int32Array.of(4, 6, 7),
    cached_lane: none(),
    cached_tokens: none(),
    ...more,
  };
}
