// A run as run_log.py writes it down: lanes (sequences), their tokens, steps, rows, states. No DOM.
import { upperBound } from "./buffers.js";
import { grouped, offsets } from "./sequences.js";

// lane.py has the same numbers.
export const MAKER = { PROMPT: 0, SAMPLED: 1, DRAFTED: 2, CHOSEN: 3, BROUGHT: 4, FORCED: 5 };
export const STATE = {
  COMPILING: 1, WAITING: 2, AWAITING_PREFIX: 3, PREEMPTED: 4, PAUSED: 5, RUNNING: 6, ENDED: 7,
};
export const WORK = { DECODE: 1, VERIFY: 2, PREFILL: 3, RECOMPUTE: 4 };
export const PARTS = ["schedule", "run", "sample", "commit", "other"];

/** Columns of one or more groups, joined; what a group lacks is not asked for by its view. */
export class Run {
  constructor(columns) {
    this.columns = columns;
    this.laneCount = columns.lane_sequence.length;
    this.count = columns.step_number.length; // of steps, which are columns 0 to count - 1
    this.byLane = grouped(columns.token_lane, this.laneCount);
    this.known = new Map();
    if (columns.step_rows) {
      this.firstRow = offsets(columns.step_rows);
      this.states = laneStates(columns, this.laneCount, this.count);
    }
    if (columns.draft_lane) this.firstNode = offsets(columns.draft_nodes);
    const cached = columns.cached_lane;
    this.cached = new Map(Array.from(cached, (lane, i) => [lane, columns.cached_tokens[i]]));
  }

  /** The column of the last step that is not after `step`; -1 before the first. */
  columnAt(step) {
    return upperBound(this.columns.step_number, step) - 1;
  }

  stepOf(column) {
    return this.columns.step_number[column];
  }

  /** The latest lane of a sequence id; -1 for none. */
  laneOf(id) {
    return id === null || id === undefined ? -1 : this.columns.lane_sequence.lastIndexOf(id);
  }

  name(lane) {
    const { lane_branch, requests } = this.columns;
    return lane_branch[lane] ? `${requests[lane]}.${lane_branch[lane]}` : requests[lane];
  }

  /** The places in the token columns of a lane's tokens, by position; its parent's come first. */
  tokens(lane) {
    const known = this.known.get(lane);
    if (known) return known;
    const { lane_parent, lane_forked } = this.columns;
    const own = this.byLane.of(lane);
    let all = own;
    if (lane_parent[lane] >= 0) {
      const shared = this.tokens(lane_parent[lane]).subarray(0, lane_forked[lane]);
      all = new Uint32Array(shared.length + own.length);
      all.set(shared);
      all.set(own, shared.length);
    }
    this.known.set(lane, all);
    return all;
  }

  /** The token id at a lane's position; -1 where it is not known. */
  tokenAt(lane, position) {
    const place = this.tokens(lane)[position];
    return place === undefined ? -1 : this.columns.token_id[place];
  }

  /** The rows of a step as [from, to). */
  rows(column) {
    return [this.firstRow[column], this.firstRow[column + 1]];
  }

  /** The row of a lane in a step; -1 where it has none. */
  rowOf(lane, column) {
    const [from, to] = this.rows(column);
    for (let row = from; row < to; row++) if (this.columns.row_lane[row] === lane) return row;
    return -1;
  }

  /** The draft of a lane in a step; -1 where it has none. Drafts come in the order of steps. */
  draftOf(lane, column) {
    const { draft_column, draft_lane } = this.columns;
    if (!draft_column) return -1;
    for (let k = upperBound(draft_column, column) - 1; k >= 0 && draft_column[k] === column; k--)
      if (draft_lane[k] === lane) return k;
    return -1;
  }

  /** The number of the last change of a lane's state that holds in a column; -1 before the first. */
  changeAt(lane, column) {
    const changes = this.states.changes.of(lane);
    let found = -1;
    for (const change of changes) {
      if (this.columns.change_column[change] > column) break;
      found = change;
    }
    return found;
  }
}

/**
 * Of each lane, its changes of state, and the columns that it is there for: [born, gone).
 *
 * A lane is there from the step it waits for until the one in which it ended.
 */
export function laneStates({ change_lane, change_column, change_state }, laneCount, count) {
  const changes = grouped(change_lane, laneCount);
  const [born, gone] = [new Uint32Array(laneCount), new Uint32Array(laneCount).fill(count)];
  for (let lane = 0; lane < laneCount; lane++) {
    const own = changes.of(lane);
    born[lane] = own.length ? change_column[own[0]] : 0;
    const last = own[own.length - 1];
    if (own.length && change_state[last] === STATE.ENDED)
      gone[lane] = Math.min(count, change_column[last] + 1);
  }
  return { changes, born, gone };
}

/** What each step runs: prompt tokens, decoded ones, drafted ones, and computed a second time. */
export function stepTokens({ row_num, row_work, row_drafted }, firstRow) {
  const count = firstRow.length - 1;
  const sums = {};
  for (const name of ["prefill", "recompute", "decode", "draft", "total"])
    sums[name] = new Uint32Array(count);
  for (let column = 0; column < count; column++) {
    for (let row = firstRow[column]; row < firstRow[column + 1]; row++) {
      const [tokens, drafted] = [row_num[row], row_drafted[row]];
      sums.total[column] += tokens;
      if (row_work[row] === WORK.PREFILL) sums.prefill[column] += tokens;
      else if (row_work[row] === WORK.RECOMPUTE) sums.recompute[column] += tokens;
      else sums.decode[column] += tokens - drafted;
      sums.draft[column] += drafted;
    }
  }
  return sums;
}
