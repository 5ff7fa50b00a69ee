// The draft tree of a step: what was proposed, what the model took, and what it added.
import { upperBound } from "./buffers.js";
import { drawAcceptance } from "./acceptance_strip.js";
import { ADDED, TAKEN, drawTree } from "./draft_draw.js";
import { acceptance, boxAt, draftDepths, draftsIn, overall, treeOf } from "./draft_tree.js";
import { canvas, element, mount } from "./panel.js";
import { groupTraits, legend, loadRun, options, textButton, toolbar } from "./run_panel.js";
import { TokenTexts } from "./token_text.js";

const GROUPS = ["sequences", "drafts"];
const MOST_POSITIONS = 12;

function build(panel) {
  const { model, cursor } = panel;
  const tools = toolbar(panel);
  const pick = tools.appendChild(element("select", "wb-select", { "aria-label": "sequence" }));
  const keys = tools.appendChild(element("div", "wb-keys"));
  const tree = canvas(panel.body, "wb-tree");
  const words = panel.body.appendChild(element("div", "wb-tree-words"));
  const chart = canvas(panel.body, "wb-acceptance");
  const view = { panel, pick, keys, tree, words, chart, run: null, boxes: [], draft: -1 };
  const button = (text, title, by) => textButton(panel, tools, text, title, () => nextDraft(view, by));
  button("‹ draft", "The step before that verified a draft (key ,)", -1);
  button("draft ›", "The next step that verified a draft (key .)", 1);
  panel.listen(pick, "change", () => selectDraft(view, Number(pick.value)));
  panel.listen(tree.canvas, "mousemove", (event) => hoverNode(view, event));
  panel.listen(tree.canvas, "mouseleave", () => panel.tooltip.hide());
  panel.listen(chart.canvas, "mousemove", (event) => hoverBin(view, event));
  panel.listen(chart.canvas, "mouseleave", () => panel.tooltip.hide());
  panel.listen(chart.canvas, "click", (event) => {
    const column = view.strip?.columnAt(event.offsetX) ?? -1;
    if (column >= 0) cursor.go(view.run.stepOf(column));
  });
  panel.listen(panel.body, "keydown", (event) => treeKeys(view, event));
  return {
    traits: groupTraits(GROUPS),
    async load(newest) {
      const run = await loadRun(model, GROUPS);
      if (newest() && run) take(view, run);
    },
    draw: (step, colours) => draw(view, step, colours),
  };
}

function take(view, run) {
  run.draftDepth = draftDepths(run);
  const deepest = run.draftDepth.reduce((most, depth) => Math.max(most, depth), 0);
  view.positions = Math.min(MOST_POSITIONS, deepest);
  Object.assign(view, { run, texts: new TokenTexts(run.columns) });
}

// --- choosing --------------------------------------------------------------------------------------

function treeKeys(view, event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
  const acts = {
    ",": () => nextDraft(view, -1), ".": () => nextDraft(view, 1),
    ArrowDown: () => selectDraft(view, view.drafts.indexOf(view.draft) + 1),
    ArrowUp: () => selectDraft(view, view.drafts.indexOf(view.draft) - 1),
  };
  if (!(event.key in acts) || !view.run) return;
  acts[event.key]();
  event.preventDefault();
  event.stopPropagation();
}

function nextDraft(view, by) {
  const { run, panel } = view;
  if (!run) return;
  const { draft_column } = run.columns;
  const column = run.columnAt(panel.cursor.step);
  const [from, to] = draftsIn(draft_column, column, upperBound);
  const next = by > 0 ? to : from - 1;
  if (next >= 0 && next < draft_column.length) panel.cursor.go(run.stepOf(draft_column[next]));
}

function selectDraft(view, place) {
  const draft = view.drafts?.[place];
  if (draft === undefined) return;
  const { draft_lane, lane_sequence } = view.run.columns;
  view.panel.cursor.select(lane_sequence[draft_lane[draft]]);
}

/** The drafts of a step, and the one shown: the selected sequence's, else the first. */
function choose(view, column) {
  const { run, panel } = view;
  const { draft_column, draft_lane } = run.columns;
  const [from, to] = draftsIn(draft_column, column, upperBound);
  view.drafts = Array.from({ length: to - from }, (_, k) => from + k);
  const lane = run.laneOf(panel.cursor.selected);
  view.draft = view.drafts.find((draft) => draft_lane[draft] === lane) ?? view.drafts[0] ?? -1;
  const names = view.drafts.map((draft) => `${run.name(draft_lane[draft])}: ${counted(run, draft)}`);
  view.pick.hidden = !names.length;
  options(view.pick, names, view.drafts.indexOf(view.draft));
}

function counted(run, draft) {
  const [from, to] = [run.firstNode[draft], run.firstNode[draft + 1]];
  let accepted = 0;
  for (let node = from; node < to; node++) accepted += run.columns.node_accepted[node];
  return `${accepted} of ${to - from} accepted`;
}

// --- drawing ---------------------------------------------------------------------------------------

function draw(view, step, colours) {
  const { run } = view;
  if (!run?.columns.draft_lane.length) {
    view.words.textContent = "No draft has been verified: this run has no proposer, or none yet.";
    for (const { canvas: drawing } of [view.tree, view.chart]) drawing.style.height = "0";
    return "no draft has been verified";
  }
  const column = run.columnAt(step);
  choose(view, column);
  showKeys(view, colours);
  if (view.draft < 0) {
    view.boxes = [];
    view.tree.canvas.style.height = "0";
    view.words.textContent = `Step ${step} verified no draft. ‹ and › go to one that did.`;
  } else {
    view.nodes = treeOf(run, view.draft);
    view.boxes = drawTree(view.tree, view.nodes, run, view.draft, view.texts, colours);
    view.words.textContent = account(view);
  }
  drawChart(view, column, colours);
  return `step ${step}: ${view.words.textContent}`;
}

function account({ run, draft, texts }) {
  const { columns } = run;
  const [from, to] = [run.firstNode[draft], run.firstNode[draft + 1]];
  const path = [];
  for (let node = from; node < to; node++)
    if (columns.node_accepted[node]) path.push(columns.node_token[node]);
  const proposer = columns.proposers[columns.draft_proposer[draft]] || "the proposer";
  const text = [...path, columns.draft_bonus[draft]].map((id) => texts.shown(id)).join(" ");
  const many = to - from === 1 ? "1 token" : `${to - from} tokens`;
  const mean = 1 + columns.node_accepted.reduce((a, b) => a + b, 0) / columns.draft_lane.length;
  return (
    `${run.name(columns.draft_lane[draft])}: ${proposer} drafted ${many}, ${path.length} accepted ` +
    `and 1 added by the model: ${text}. All ${columns.draft_lane.length} drafts of this run: ` +
    `${mean.toFixed(2)} tokens a draft on average.`
  );
}

function drawChart(view, column, colours) {
  const { run, chart, positions } = view;
  view.strip = drawAcceptance(chart, { run, positions, column, count: acceptance, sum: overall }, colours);
}

function showKeys(view, colours) {
  const key = String(colours.dark);
  if (view.keysOf === key) return;
  view.keysOf = key;
  legend(view.keys, [
    [TAKEN, "accepted"],
    [colours.paper, "rejected", "framed"],
    [ADDED, "added by the model"],
    [null, "number, thickness: the proposer's probability"],
  ]);
}

const VERDICTS = {
  root: "the last token before the draft",
  accepted: "accepted",
  rejected: "rejected",
  added: "added by the model after the accepted path",
};

// --- pointer ---------------------------------------------------------------------------------------

function hoverNode(view, event) {
  const { run, draft, texts, panel, boxes } = view;
  const found = draft < 0 ? -1 : boxAt(boxes, event.offsetX, event.offsetY);
  if (found < 0) return panel.tooltip.hide();
  const { columns } = run;
  const lane = columns.draft_lane[draft];
  const at = columns.draft_at[draft];
  const { kinds, depths, tokens, probabilities } = view.nodes;
  const kind = kinds[found];
  const rows = [
    ["request", run.name(lane)],
    ["token", `${texts.shown(tokens[found])} (id ${tokens[found]})`],
    ["position", String(at + depths[found] - 1)],
    ["verdict", VERDICTS[kind]],
  ];
  if (kind === "accepted" || kind === "rejected") {
    rows.push(["proposer", columns.proposers[columns.draft_proposer[draft]] || "not named"]);
    const likely = probabilities[found];
    if (!Number.isNaN(likely)) rows.push(["its share", likely.toFixed(3)]);
  }
  panel.tooltip.show(event, rows);
}

function hoverBin(view, event) {
  const rows = view.strip?.wordsAt(event.offsetX, event.offsetY);
  if (rows) view.panel.tooltip.show(event, rows);
  else view.panel.tooltip.hide();
}

export default mount("speculation-tree", build);
