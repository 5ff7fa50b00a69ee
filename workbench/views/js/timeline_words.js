// What a pointer over the timeline is told, as rows of [label, text]. No DOM.
import { STATE, WORK } from "./run_log.js";
import { WORK_NAMES } from "./batch_list.js";
import { brief } from "./span_axis.js";
import { shortened, visible } from "./token_text.js";

const STATE_NAMES = {
  [STATE.COMPILING]: "its grammar is compiled",
  [STATE.WAITING]: "waiting",
  [STATE.AWAITING_PREFIX]: "waiting for a prefix",
  [STATE.PREEMPTED]: "preempted, waiting",
  [STATE.PAUSED]: "paused",
  [STATE.RUNNING]: "running, but not in this batch",
  [STATE.ENDED]: "ended",
};

/** A whole step: its batch and its times. */
export function stepRowsOfTooltip({ run, tokens, budget, parts, times, time, device }, column) {
  const { step_waiting, step_running, step_free } = run.columns;
  const [from, to] = run.rows(column);
  const kinds = ["prefill", "recompute", "decode", "draft"]
    .filter((kind) => tokens[kind][column])
    .map((kind) => `${tokens[kind][column]} ${kind}`);
  const of = budget ? ` of ${budget}` : "";
  const rows = [
    ["step", String(run.stepOf(column))],
    ["batch", `${tokens.total[column]}${of} tokens in ${to - from} rows`],
    ["tokens", kinds.join(", ") || "none"],
    ["queue", `${step_running[column]} running, ${step_waiting[column]} waiting`],
    ["free", `${step_free[column]} blocks`],
    ["time", brief(time[column], "ms")],
    ...parts.map((part, k) => [part, brief(times[k][column], "ms")]),
  ];
  if (device[column] > 0) rows.push(["device", brief(device[column], "ms")]);
  return rows;
}

/** One request in a step. */
export function laneRowsOfTooltip({ run, texts }, lane, column) {
  const { columns } = run;
  const prompt = columns.lane_prompt[lane];
  const rows = [
    ["request", `${run.name(lane)} (sequence ${columns.lane_sequence[lane]})`],
    ["step", String(run.stepOf(column))],
  ];
  const row = run.rowOf(lane, column);
  if (row >= 0) rows.push(...workRows(run, texts, lane, row));
  const change = run.changeAt(lane, column);
  const state = change < 0 ? STATE.WAITING : columns.change_state[change];
  const cause = change < 0 ? "" : columns.causes[columns.change_cause[change]];
  const since = state === STATE.ENDED ? ` in step ${run.stepOf(columns.change_column[change])}` : "";
  if (row < 0) rows.push(["state", STATE_NAMES[state] + since]);
  else if (state === STATE.ENDED) rows.push(["ends", "in this step"]);
  if (cause) rows.push(["why", cause]);
  const cached = run.cached.get(lane);
  rows.push(["prompt", cached ? `${prompt} tokens, ${cached} found in the cache` : `${prompt} tokens`]);
  if (columns.lane_parent[lane] >= 0) {
    const parent = run.name(columns.lane_parent[lane]);
    rows.push(["forked", `from ${parent} at token ${columns.lane_forked[lane]}`]);
  }
  return rows;
}

function workRows(run, texts, lane, row) {
  const { row_start, row_num, row_work, row_made, row_at, row_drafted, row_accepted } = run.columns;
  const [start, count, drafted] = [row_start[row], row_num[row], row_drafted[row]];
  const last = start + count - 1;
  const rows = [
    ["work", `${WORK_NAMES[row_work[row]]}, ${count} token${count === 1 ? "" : "s"}`],
    ["positions", count === 1 ? String(start) : `${start} to ${last}`],
  ];
  if (row_work[row] === WORK.VERIFY) rows.push(["draft", `${row_accepted[row]} of ${drafted} accepted`]);
  const spell = (from, many) =>
    visible(texts.run(Array.from({ length: many }, (_, k) => run.tokenAt(lane, from + k))).join(""));
  rows.push(["runs", shortened(spell(start, Math.min(60, count - drafted)), 60)]);
  if (row_made[row]) rows.push(["makes", shortened(spell(row_at[row], row_made[row]), 60)]);
  return rows;
}
