// What is known of one token: how likely, what else, and how it came. No DOM.
import { upperBound } from "./buffers.js";
import { MAKER } from "./run_log.js";

const MOST_BITS = 6; // of surprise; beyond it nothing gets stronger

/** How unlikely a token was, 0 (certain, or not told) to 1 (one in 64, or less). */
export function strength(logprob) {
  return logprob < 0 ? Math.min(1, -logprob / Math.LN2 / MOST_BITS) : 0;
}

/**
 * The position of the last token that is there in a column; 0 before any. Tokens of a lane come in
 * the order of their columns.
 */
export function placeAt(places, tokenColumn, column) {
  const made = Int32Array.from(places, (place) => tokenColumn[place]);
  return Math.max(0, upperBound(made, column) - 1);
}

/** The likeliest tokens beside one, best first: [[id, probability, whether it was taken], ...]. */
export function alternatives({ columns }, place) {
  const { top_token, top_id, top_logprob, token_id } = columns;
  const found = [];
  for (let k = upperBound(top_token, place - 1); k < top_token.length && top_token[k] === place; k++)
    found.push([top_id[k], Math.exp(top_logprob[k]), top_id[k] === token_id[place]]);
  return found.sort((a, b) => b[1] - a[1]);
}

/** How a token came, in words. */
export function howItCame({ columns }, name, lane, position, place) {
  const { token_maker, token_proposer, proposers, lane_parent, lane_forked } = columns;
  const words = {
    [MAKER.PROMPT]: "prompt",
    [MAKER.SAMPLED]: "sampled",
    [MAKER.DRAFTED]: `drafted by ${proposers[token_proposer[place]] || "a proposer"}, accepted`,
    [MAKER.CHOSEN]: "chosen by beam search",
    [MAKER.BROUGHT]: "made before it came here",
    [MAKER.FORCED]: "forced: the only one its grammar allowed",
  }[token_maker[place]];
  const shared = lane_parent[lane] >= 0 && position < lane_forked[lane];
  return shared ? `${words}, by ${name(lane_parent[lane])} before the fork` : words;
}

/** A token's card as [label, text] rows. */
export function cardRows(run, texts, lane, position, place) {
  const { token_id, token_column, token_logprob, lane_prompt } = run.columns;
  const name = (other) => run.name(other);
  const output = position - lane_prompt[lane];
  const where = output < 0 ? `prompt ${position}` : `output ${output}, position ${position}`;
  const rows = [
    ["token", `${texts.shown(token_id[place])} (id ${token_id[place]})`],
    ["request", run.name(lane)],
    ["place", where],
  ];
  if (token_column[place] >= 0) rows.push(["step", String(run.stepOf(token_column[place]))]);
  rows.push(["how", howItCame(run, name, lane, position, place)]);
  if (token_logprob[place] <= 0) {
    const logprob = token_logprob[place];
    rows.push(["probability", `${(Math.exp(logprob) * 100).toFixed(1)} % (${logprob.toFixed(2)} nats)`]);
  }
  return rows;
}
