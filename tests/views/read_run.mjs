// Reads a run view's columns from stdin, as JSON, and prints what they say of every sequence and
// every batch: for test_run_views.py, which knows the truth.
import { batchRows, WORK_NAMES } from "../../workbench/views/js/batch_list.js";
import { loadRun } from "../../workbench/views/js/run_panel.js";
import { laneRowsOfTooltip } from "../../workbench/views/js/timeline_words.js";
import { alternatives, placeAt } from "../../workbench/views/js/token_facts.js";
import { TokenTexts } from "../../workbench/views/js/token_text.js";

const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const { state, groups } = JSON.parse(Buffer.concat(chunks).toString());
const run = await loadRun({ get: (name) => Buffer.from(state[name], "base64") }, groups);
const texts = new TokenTexts(run.columns);
const { columns } = run;
const lanes = Array.from({ length: run.laneCount }, (_, lane) => {
  const places = run.tokens(lane);
  const of = (column) => Array.from(places, (place) => column[place]);
  const steps = of(columns.token_column).map((column) => (column < 0 ? null : run.stepOf(column)));
  const finite = (value) => (Number.isNaN(value) ? null : value);
  return {
    name: run.name(lane),
    sequence: columns.lane_sequence[lane],
    prompt: columns.lane_prompt[lane],
    tokens: of(columns.token_id),
    steps,
    makers: of(columns.token_maker),
    logprobs: of(columns.token_logprob).map(finite),
    tops: Array.from(places, (place) => alternatives(run, place).map(([id]) => id)),
    text: texts.run(of(columns.token_id)).join(""),
    life: [run.states.born[lane], run.states.gone[lane]],
  };
});
const steps = Array.from({ length: run.count }, (_, column) => ({
  step: run.stepOf(column),
  rows: batchRows(run, column).map((row) => ({
    ...row,
    sequence: columns.lane_sequence[row.lane],
    name: WORK_NAMES[row.work],
  })),
  states: Array.from({ length: run.laneCount }, (_, lane) => {
    const change = run.changeAt(lane, column);
    return change < 0 ? null : columns.change_state[change];
  }),
  words: Array.from({ length: run.laneCount }, (_, lane) =>
    Object.fromEntries(laneRowsOfTooltip({ run, texts }, lane, column))),
  reached: Array.from({ length: run.laneCount }, (_, lane) =>
    placeAt(run.tokens(lane), columns.token_column, column)),
}));
console.log(JSON.stringify({ lanes, steps }));
