// The packed batch of one step, token by token, as a list. Text is set as text.
import { css } from "./colours.js";
import { element } from "./panel.js";
import { WORK } from "./run_log.js";

const MOST_TOKENS = 400; // of one row; the rest is counted

export const WORK_NAMES = {
  [WORK.DECODE]: "decode",
  [WORK.VERIFY]: "verify",
  [WORK.PREFILL]: "prefill",
  [WORK.RECOMPUTE]: "recompute",
};

/** A row of a batch: {lane, work, from, to, tokens: [[id, kind]], made: [id]}. */
export function batchRows(run, column) {
  const { row_lane, row_start, row_num, row_work, row_at, row_made, row_drafted, row_accepted } =
    run.columns;
  const rows = [];
  const [from, to] = run.rows(column);
  for (let row = from; row < to; row++) {
    const [lane, start, drafted] = [row_lane[row], row_start[row], row_drafted[row]];
    const known = row_num[row] - drafted;
    const tokens = Array.from({ length: known }, (_, k) => [run.tokenAt(lane, start + k), "own"]);
    if (drafted) tokens.push(...draftTokens(run, run.draftOf(lane, column), drafted));
    const made = Array.from({ length: row_made[row] }, (_, k) => run.tokenAt(lane, row_at[row] + k));
    const last = start + row_num[row] - 1;
    rows.push({
      lane, tokens, made, drafted, accepted: row_accepted[row], work: row_work[row],
      from: start, to: last,
    });
  }
  return rows;
}

function draftTokens(run, draft, count) {
  if (draft < 0) return Array.from({ length: count }, () => [-1, "rejected"]);
  const first = run.firstNode[draft];
  const { node_token, node_accepted } = run.columns;
  return Array.from({ length: count }, (_, k) => [
    node_token[first + k],
    node_accepted[first + k] ? "accepted" : "rejected",
  ]);
}

/** Fill `box` with a step's batch. colourOf(work): [r, g, b]; texts: a `TokenTexts`. */
export function showBatch(box, run, column, { texts, colourOf, budget }) {
  const rows = batchRows(run, column);
  const total = rows.reduce((sum, row) => sum + row.tokens.length, 0);
  const of = budget ? ` of at most ${budget}` : "";
  const title = `Step ${run.stepOf(column)}: ${total}${of} tokens, packed from ${rows.length} rows`;
  const table = element("table", "wb-batch");
  const head = table.appendChild(element("tr", ""));
  for (const name of ["row", "request", "work", "positions", "tokens run", "new"])
    head.appendChild(element("th", "", { scope: "col" }, name));
  rows.forEach((row, place) => table.appendChild(batchRow(row, place, run, texts, colourOf)));
  box.replaceChildren(
    element("div", "wb-batch-title", {}, title),
    packedBar(rows, total, budget, run, colourOf),
    table,
  );
}

function batchRow(row, place, run, texts, colourOf) {
  const line = element("tr", "");
  const cells = [place, run.name(row.lane), WORK_NAMES[row.work], positions(row)];
  for (const text of cells) line.appendChild(element("td", "", {}, String(text)));
  line.cells[2].style.boxShadow = `inset 3px 0 ${css(colourOf(row.work))}`;
  const tokens = line.appendChild(element("td", "wb-tokens"));
  for (const [id, kind] of row.tokens.slice(0, MOST_TOKENS))
    tokens.appendChild(element("span", `wb-token wb-${kind}`, { title: `id ${id}` }, texts.shown(id)));
  if (row.tokens.length > MOST_TOKENS)
    tokens.append(` and ${row.tokens.length - MOST_TOKENS} more`);
  const made = line.appendChild(element("td", "wb-tokens"));
  for (const id of row.made)
    made.appendChild(element("span", "wb-token wb-new", { title: `id ${id}` }, texts.shown(id)));
  if (!row.made.length) made.append("–");
  return line;
}

function positions({ from, to, drafted, accepted }) {
  const span = from === to ? `${from}` : `${from}–${to}`;
  return drafted ? `${span} (${accepted} of ${drafted} accepted)` : span;
}

/** The batch as one bar, a part for each row and what is left of the budget. */
function packedBar(rows, total, budget, run, colourOf) {
  const bar = element("div", "wb-packed", { "aria-hidden": "true" });
  for (const row of rows) {
    const part = bar.appendChild(element("span", ""));
    part.style.flexGrow = row.tokens.length;
    part.style.background = css(colourOf(row.work));
    part.title = `${run.name(row.lane)}: ${row.tokens.length} tokens`;
  }
  if (budget > total) bar.appendChild(element("span", "wb-rest")).style.flexGrow = budget - total;
  return bar;
}
