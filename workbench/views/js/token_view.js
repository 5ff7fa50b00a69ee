// A request's text, token by token: how likely each was, what else it might have been, how it came.
import { css, mix, rgb } from "./colours.js";
import { canvas, element, mount } from "./panel.js";
import { MAKER } from "./run_log.js";
import { groupTraits, legend, loadRun, options, toolbar } from "./run_panel.js";
import { alternatives, cardRows, placeAt, strength } from "./token_facts.js";
import { TokenTexts } from "./token_text.js";

const GROUPS = ["sequences"];
const MOST = 4000; // tokens shown of an output, and
const MOST_PROMPT = 400; // of a prompt, the last ones
const UNSURE = rgb("#E69F00");
const MARKS = {
  [MAKER.DRAFTED]: rgb("#CC79A7"), [MAKER.CHOSEN]: rgb("#56B4E9"), [MAKER.BROUGHT]: rgb("#999999"),
  [MAKER.FORCED]: rgb("#009E73"),
};
const MARK_NAMES = {
  [MAKER.DRAFTED]: "drafted, accepted", [MAKER.CHOSEN]: "chosen by beam search",
  [MAKER.BROUGHT]: "from an earlier run", [MAKER.FORCED]: "forced by a grammar",
};
const CHART = 44; // pixels

function build(panel) {
  const { model } = panel;
  const tools = toolbar(panel);
  const pick = tools.appendChild(element("select", "wb-select", { "aria-label": "request" }));
  const keys = tools.appendChild(element("div", "wb-keys"));
  const chart = canvas(panel.body, "wb-surprise");
  const both = panel.body.appendChild(element("div", "wb-beside"));
  const attributes = { tabindex: "0", role: "group", "aria-label": "tokens" };
  const text = both.appendChild(element("div", "wb-text", attributes));
  text.setAttribute("data-lm-suppress-shortcuts", "true");
  const card = both.appendChild(element("div", "wb-card"));
  const view = { panel, pick, keys, chart, text, card, run: null, lane: 0, sequence: null, spans: [], over: null };
  listenText(view);
  listenChart(view);
  panel.listen(pick, "change", () => {
    panel.cursor.select(view.run.columns.lane_sequence[Number(pick.value)]);
  });
  return {
    traits: groupTraits(GROUPS),
    async load(newest) {
      const run = await loadRun(model, GROUPS);
      if (!newest() || !run) return;
      Object.assign(view, { run, texts: new TokenTexts(run.columns), shown: null });
    },
    draw: (step, colours) => draw(view, step, colours),
  };
}

// --- pointer and keys ------------------------------------------------------------------------------

function positionOf(view, event) {
  const span = event.target.closest?.(".wb-t");
  return span && view.text.contains(span) ? Number(span.dataset.position) : null;
}

function listenText(view) {
  const { panel, text } = view;
  panel.listen(text, "mousemove", (event) => look(view, positionOf(view, event)));
  panel.listen(text, "mouseleave", () => look(view, null));
  panel.listen(text, "click", (event) => {
    const position = positionOf(view, event);
    if (position !== null) choose(view, position);
  });
  panel.listen(text, "keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
    choose(view, Math.max(0, Math.min(view.places.length - 1, view.position + by)));
    event.preventDefault();
    event.stopPropagation();
  });
}

function listenChart(view) {
  const { panel, chart } = view;
  const at = (event) => {
    if (!view.bars) return null;
    const place = Math.floor(event.offsetX / view.bars.wide);
    return place < view.bars.count ? view.bars.first + place : null;
  };
  panel.listen(chart.canvas, "mousemove", (event) => look(view, at(event)));
  panel.listen(chart.canvas, "mouseleave", () => look(view, null));
  panel.listen(chart.canvas, "click", (event) => {
    if (at(event) !== null) choose(view, at(event));
  });
}

/** Show a token's card while the pointer is over it. */
function look(view, position) {
  if (view.over === position) return;
  view.over = position;
  view.panel.ask();
}

/** Go to the step that made a token; what was there from the start has none. */
function choose(view, position) {
  const column = view.run.columns.token_column[view.places[position]];
  view.wanted = position;
  if (column >= 0) view.panel.cursor.go(view.run.stepOf(column));
  view.panel.ask();
}

// --- drawing ---------------------------------------------------------------------------------------

function draw(view, step, colours) {
  const { run, panel } = view;
  if (!run?.laneCount) {
    view.text.textContent = "No request yet.";
    return "no request yet";
  }
  const column = run.columnAt(step);
  const selected = run.laneOf(panel.cursor.selected);
  // By id: where a long live run has lost its beginning the lanes are others.
  view.lane = Math.max(0, selected >= 0 ? selected : run.laneOf(view.sequence));
  view.sequence = run.columns.lane_sequence[view.lane];
  const names = Array.from({ length: run.laneCount }, (_, lane) => title(run, lane));
  options(view.pick, names, view.lane);
  view.places = run.tokens(view.lane);
  fill(view, colours);
  const made = (position) => run.columns.token_column[view.places[position]];
  view.position = placeAt(view.places, run.columns.token_column, column);
  if (view.wanted !== undefined && made(view.wanted) <= column) {
    if (made(view.wanted) === made(view.position) || made(view.wanted) < 0) view.position = view.wanted;
    else view.wanted = undefined;
  }
  mark(view, column);
  drawChart(view, column, colours);
  showKeys(view, colours);
  showCard(view, view.over ?? view.position, colours);
  return sentence(view, step);
}

function title(run, lane) {
  const prompt = run.columns.lane_prompt[lane];
  return `${run.name(lane)}: ${prompt} + ${Math.max(0, run.tokens(lane).length - prompt)} tokens`;
}

/** Make a span for each token of the lane, when the lane, its tokens or the theme are others. */
function fill(view, colours) {
  const { run, lane, places, texts } = view;
  const key = `${lane} ${places.length}`;
  if (view.shown === key && view.shownIn === colours) return;
  [view.shown, view.shownIn] = [key, colours];
  const { token_id, token_logprob, token_maker, lane_prompt, lane_parent, lane_forked } = run.columns;
  const spelt = texts.run(Array.from(places, (place) => token_id[place]));
  const prompt = Math.min(places.length, lane_prompt[lane]);
  view.begin = Math.max(0, prompt - MOST_PROMPT);
  view.end = Math.min(places.length, prompt + MOST);
  const parts = [];
  if (view.begin) parts.push(note(`… ${view.begin} more tokens of the prompt … `));
  view.spans = [];
  for (let position = view.begin; position < view.end; position++) {
    const [place, parent] = [places[position], lane_parent[lane]];
    if (parent >= 0 && position === lane_forked[lane])
      parts.push(note(`⑂ ${run.name(parent)} `, "wb-fork"));
    const span = element("span", "wb-t", {}, shownText(spelt[position]));
    span.dataset.position = position;
    if (position < prompt) span.classList.add("wb-prompt");
    const unsure = strength(token_logprob[place]);
    if (unsure > 0) span.style.background = css(mix(colours.paper, UNSURE, unsure * 0.85));
    if (unsure > 0.5 && colours.dark) span.style.color = "#000";
    const line = MARKS[token_maker[place]];
    if (line) span.style.boxShadow = `inset 0 -2px ${css(line)}`;
    view.spans.push(span);
    parts.push(span);
  }
  if (view.end < places.length) parts.push(note(` … ${places.length - view.end} more`));
  view.text.replaceChildren(...parts);
  view.marked = null;
}

function note(text, more = "") {
  return element("span", `wb-note ${more}`, {}, text);
}

/** A line break is seen, and breaks; a token that shows nothing can still be pointed at. */
function shownText(text) {
  return text === "" ? "\u00b7" : text.replaceAll("\n", "↵\n");
}

/**
 * Dim what is not made yet, mark what the step made, outline the token that the card is about; only
 * what has changed is touched.
 */
function mark(view, column) {
  const { run, spans, places, begin } = view;
  const made = (k) => run.columns.token_column[places[begin + k]];
  let reached = spans.length;
  while (reached > 0 && made(reached - 1) > column) reached--;
  let fresh = reached;
  while (fresh > 0 && column >= 0 && made(fresh - 1) === column) fresh--;
  const before = view.marked ?? { fresh: 0, reached: spans.length, position: -1 };
  const [from, to] = [Math.min(before.reached, reached), Math.max(before.reached, reached)];
  for (let k = from; k < to; k++) spans[k].classList.toggle("wb-later", k >= reached);
  for (let k = before.fresh; k < before.reached; k++) spans[k].classList.remove("wb-fresh");
  for (let k = fresh; k < reached; k++) spans[k].classList.add("wb-fresh");
  spans[before.position - begin]?.classList.remove("wb-now");
  const now = spans[view.position - begin];
  now?.classList.add("wb-now");
  if (now && before.position !== view.position) scrollIn(view.text, now);
  view.marked = { fresh, reached, position: view.position };
}

function scrollIn(box, span) {
  const [top, bottom] = [span.offsetTop - box.offsetTop, span.offsetTop - box.offsetTop + span.offsetHeight];
  if (top < box.scrollTop) box.scrollTop = top - 8;
  else if (bottom > box.scrollTop + box.clientHeight) box.scrollTop = bottom - box.clientHeight + 8;
}

/** Bars of surprise (bits) of each output token; those of later steps are pale. */
function drawChart(view, column, colours) {
  const { run, lane, places, chart } = view;
  const { token_logprob, token_column, lane_prompt } = run.columns;
  const first = Math.min(places.length, lane_prompt[lane]);
  const count = places.length - first;
  const told = count > 0 && places.subarray(first).some((place) => token_logprob[place] <= 0);
  chart.canvas.style.height = told ? `${CHART}px` : "0";
  if (!told) return void (view.bars = null);
  const { width } = chart.fit();
  const { context } = chart;
  const wide = Math.min(12, Math.max(1, (width - 96) / count));
  view.bars = { first, count, wide };
  const base = CHART - 4;
  for (let k = 0; k < count; k++) {
    const place = places[first + k];
    const height = strength(token_logprob[place]) * (base - 8);
    const later = token_column[place] > column;
    context.fillStyle = css(first + k === view.position ? colours.accent : UNSURE, later ? 0.35 : 1);
    context.fillRect(k * wide, base - height, Math.max(0.6, wide - (wide > 3 ? 1 : 0)), Math.max(1, height));
  }
  context.fillStyle = css(colours.line);
  context.fillRect(0, base, count * wide, 1);
  context.fillStyle = css(colours.faint);
  context.font = "11px system-ui, sans-serif";
  context.textBaseline = "top";
  context.fillText("surprise", count * wide + 8, 8);
  context.fillText("0 to 6 bits", count * wide + 8, 22);
}

function showKeys(view, colours) {
  const { run, places } = view;
  const seen = new Set(places.length ? Array.from(places, (place) => run.columns.token_maker[place]) : []);
  const key = `${[...seen]} ${view.bars !== null} ${colours.dark}`;
  if (view.keysOf === key) return;
  view.keysOf = key;
  const entries = [];
  if (view.bars) {
    entries.push([null, "probability"]);
    for (const [share, name] of [[1, "1"], [0.5, "½"], [0.25, "¼"], [1 / 16, "1⁄16"], [1 / 64, "1⁄64"]])
      entries.push([mix(colours.paper, UNSURE, strength(Math.log(share)) * 0.85), name, "framed"]);
  } else entries.push([null, "no probabilities: ask for them by SamplingParams(logprobs=5)"]);
  for (const [maker, colour] of Object.entries(MARKS))
    if (seen.has(Number(maker))) entries.push([colour, MARK_NAMES[maker], "line"]);
  legend(view.keys, entries);
}

function showCard(view, position, colours) {
  const { run, lane, places, texts, card } = view;
  const key = `${view.shown} ${position} ${colours.dark}`;
  if (view.cardOf === key) return;
  view.cardOf = key;
  const place = places[position];
  if (place === undefined) return card.replaceChildren();
  const rows = cardRows(run, texts, lane, position, place);
  const list = rows.map(([label, text]) => {
    const row = element("div", "wb-row");
    row.append(element("span", "wb-label", {}, label), element("span", "wb-value", {}, text));
    return row;
  });
  const others = alternatives(run, place).map(([id, share, chosen]) => {
    const row = element("div", chosen ? "wb-other wb-chosen" : "wb-other");
    const bar = element("span", "wb-share");
    bar.style.width = `${Math.max(1, share * 100)}%`;
    row.append(
      element("span", "wb-token", { title: `id ${id}` }, texts.shown(id)),
      element("span", "wb-percent", {}, `${(share * 100).toFixed(1)} %`),
      bar,
    );
    return row;
  });
  if (others.length) others.unshift(element("div", "wb-label", {}, "what it might have been"));
  card.replaceChildren(...list, ...others);
}

function sentence(view, step) {
  const { run, lane, places, position, texts } = view;
  const place = places[position];
  if (place === undefined) return `step ${step}: ${run.name(lane)} has no token yet`;
  const facts = cardRows(run, texts, lane, position, place).map(([label, text]) => `${label} ${text}`);
  return `step ${step}, ${facts.join(", ")}`;
}

export default mount("token-view", build);
