// KernelPlayground in the browser: controls, figures, the space, the roofline, code and its diff.
import { axesOf, configAt, configKey, layOut, MEASURES, cellOf, step } from "./config_space.js";
import { CodePane } from "./code_pane.js";
import { cellAt, drawRoofline, drawSpace } from "./kernel_charts.js";
import { Buttons, Knobs, Menus } from "./kernel_controls.js";
import { trialTiles } from "./kernel_figures.js";
import { showTiles } from "./tiles.js";
import { canvas, element, mount } from "./panel.js";

const SELECT_AFTER_MS = 120; // the kernel hears of a selection when the hand rests
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function build(panel) {
  const { model, body } = panel;
  const get = (name, otherwise) => model.get(name) ?? otherwise;
  const send = (message) => model.send(message);
  const menus = new Menus(panel, body, send);
  const banner = body.appendChild(element("div", "wb-recorded", { role: "status" }));
  const knobs = new Knobs(panel, body, select);
  const buttons = new Buttons(panel, body, send);
  const notice = body.appendChild(element("div", "wb-notice", { role: "status" }));
  const figures = body.appendChild(element("div", "wb-tiles"));
  const grid = body.appendChild(element("div", "wb-charts"));
  const space = canvas(grid, "wb-space");
  const line = canvas(grid, "wb-roofline");
  const measures = body.appendChild(element("div", "wb-controls"));
  const code = new CodePane(panel, body, (stage, launch) => send({ command: "list", stage, launch }));
  const compared = body.appendChild(element("pre", "wb-diff"));
  let [seen, box, measure, timer] = [null, null, "latency", null];
  // What a reader has selected and the kernel may not know yet.
  let own = null;
  panel.own(() => timer !== null && (clearTimeout(timer), save()));

  for (const [name, { title }] of Object.entries(MEASURES)) {
    const made = measures.appendChild(element("button", "wb-button", { type: "button" }, title));
    made.dataset.measure = name;
    panel.listen(made, "click", () => ((measure = name), panel.ask()));
  }

  function save() {
    timer = null;
    model.set("config", own);
    model.save_changes();
  }
  function select(config) {
    own = config;
    clearTimeout(timer);
    timer = setTimeout(save, SELECT_AFTER_MS);
    panel.ask();
  }
  const selected = () => (timer === null ? get("config", {}) : own);

  const exists = (x, y) => seen.known.has(configKey(configAt(seen.layout, x, y)));
  const under = (event) => {
    if (!seen || !box) return null;
    const at = space.canvas.getBoundingClientRect();
    const cell = cellAt(box, seen.layout, event.clientX - at.left, event.clientY - at.top);
    return cell && exists(...cell) ? configAt(seen.layout, ...cell) : null;
  };
  panel.listen(space.canvas, "click", (event) => {
    const config = under(event);
    if (config) select(config);
  });
  panel.listen(space.canvas, "mousemove", (event) => {
    const config = under(event);
    if (!config) return panel.tooltip.hide();
    const trial = seen.trials.get(configKey(config));
    const rows = Object.entries(config).map(([name, value]) => [name, String(value)]);
    rows.push(["status", trial ? trial.status : "not tried"]);
    if (trial?.us) rows.push(["latency", `${trial.us.p50} µs`]);
    if (trial?.reason) rows.push(["reason", trial.reason]);
    panel.tooltip.show(event, rows);
  });
  panel.listen(space.canvas, "mouseleave", () => panel.tooltip.hide());
  panel.listen(space.canvas, "keydown", (event) => {
    const from = seen && cellOf(seen.layout, selected());
    if (!from || !(event.key in ARROWS)) return;
    const to = step(seen.layout, from, ARROWS[event.key], exists);
    if (to) select(configAt(seen.layout, ...to));
    event.preventDefault();
    event.stopPropagation();
  });

  return {
    traits: ["menu", "choice", "facts", "rows", "config", "taken", "listing", "comparison", "state"],

    load() {
      const facts = get("facts", {});
      const rows = get("rows", []);
      const configs = facts.configs ?? [];
      seen = null;
      if (!configs.length) return;
      const axes = axesOf(facts.space ?? {}, [...configs, ...rows.map(({ config }) => config)]);
      const trials = new Map(rows.map((row) => [configKey(row.config), row]));
      const known = new Set(configs.map(configKey));
      seen = { facts, rows, configs, axes, trials, known, layout: layOut(axes) };
    },

    draw(_, theme) {
      const [choice, state, listing] = [get("choice", {}), get("state", {}), get("listing", {})];
      menus.show(get("menu", {}), choice);
      const live = choice.recorded === null || choice.recorded === undefined;
      buttons.show(state, live && seen);
      banner.textContent = seen?.facts.title ? `${seen.facts.title}. Nothing is measured here.` : "";
      banner.hidden = !banner.textContent;
      if (!seen) {
        notice.textContent = state.notice ?? "";
        notice.hidden = !notice.textContent;
        return state.trying ? "making inputs" : "nothing is selected";
      }
      const config = selected();
      const key = configKey(config);
      knobs.show(seen.axes, config);
      const trial = seen.trials.get(key);
      notice.textContent = [state.notice, failure(trial), outside(seen, key)].filter(Boolean).join("\n");
      notice.hidden = !notice.textContent;
      const compiled = get("taken", {});
      const taken = (at, tried) => (tried?.resources?.length ? tried.resources : compiled[`${choice.target} ${at}`]);
      // The compiler's account knows the occupancy; a trial's is this GPU's own.
      const tiles = trialTiles(trial, compiled[`${choice.target} ${key}`] ?? taken(key, trial), seen.facts);
      showTiles(figures, tiles);
      const timed = seen.rows.some((row) => row.us);
      const shown = timed || measure !== "latency" ? measure : "registers";
      for (const made of measures.children) {
        made.setAttribute("aria-pressed", String(made.dataset.measure === shown));
        made.disabled = made.dataset.measure === "latency" && !timed;
      }
      box = drawSpace(space, { ...seen, taken, measure: shown, selected: config }, theme);
      drawRoofline(line, { ...seen, trial }, theme);
      if (listing.key === key) code.show(listing);
      showDiff(compared, listing.key === key ? get("comparison", {}) : {});
      panel.root.dataset.config = key;
      panel.root.dataset.status = trial?.status ?? "";
      const said = tiles.map(([name, value, more]) => `${name} ${value} ${more}`).join("; ");
      return `${choice.kernel}, ${choice.case}: ${key}. ${said || "not tried yet"}`;
    },
  };
}

function failure(trial) {
  return trial && trial.status !== "ok" ? `${trial.status}: ${trial.reason}` : "";
}

function outside({ known }, key) {
  return known.has(key) ? "" : "The kernel's own filter keeps this configuration out of the search.";
}

function showDiff(box, { pinned, target, lines = [], more = 0, problem = "" }) {
  box.hidden = pinned === undefined;
  if (box.hidden) return;
  const said = problem || (lines.length ? "" : "no difference");
  const head = `against ${pinned} (${target}) ${said}`;
  box.replaceChildren(
    element("div", "wb-faint", {}, head),
    ...lines.map((line) => {
      const kind = line.startsWith("+") ? "wb-added" : line.startsWith("-") ? "wb-removed" : "";
      return element("div", kind, {}, line);
    }),
    ...(more ? [element("div", "wb-faint", {}, `and ${more} more lines`)] : []),
  );
}

export default mount("kernel-playground", build);
