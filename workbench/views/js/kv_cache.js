// KVCacheView in the browser: blocks and host slots, use over time, prefix lookups, one selection.
import { joined, unpackColumns } from "./buffers.js";
import { mix } from "./colours.js";
import { Grid, looks } from "./kv_grid.js";
import { KVLog, ownerOf } from "./kv_log.js";
import { LookupList } from "./kv_lookups.js";
import { CellCursor } from "./kv_cursor.js";
import { drawMarks } from "./kv_overlay.js";
import { legend } from "./kv_legend.js";
import { explain, sentence } from "./kv_words.js";
import { canvas, element, mount } from "./panel.js";
import { column, SeriesChart } from "./series.js";

const HEIGHT = 380; // CSS pixels that the blocks take if they can
const HOST_HEIGHT = 90;

function build(panel) {
  const head = panel.body.appendChild(element("div", "wb-head"));
  const columns = panel.body.appendChild(element("div", "wb-columns"));
  const left = columns.appendChild(element("div", "wb-left"));
  const strips = left.appendChild(element("div", "wb-strips"));
  const use = canvas(left, "wb-use");
  const lookups = new LookupList(columns, (lookup) => {
    select(log.lookup_sequence[lookup]);
    panel.cursor.go(log.about.first_step + log.lookup_row[lookup]);
  });
  const signs = panel.body.appendChild(element("div", "wb-legend"));
  const chart = new SeriesChart(use, "blocks");
  let [log, grids, hovered, old, version] = [null, [], null, {}, 0];
  const pointed = new CellCursor(panel, {
    grids: () => grids,
    words: (place) => explain(log, place),
    changed: (place) => {
      hovered = place < 0 ? null : { event: pointed.corner(), place };
      panel.ask();
    },
    chosen: (place) => choose(place),
  });
  let look = null; // for one theme

  /** Show the blocks of a sequence (row), or of none. */
  function select(row) {
    panel.cursor.select(row === null || row === undefined ? null : log.sequences.ids[row]);
  }

  function choose(place) {
    const rows = log.holders(place).map((hold) => log.hold_sequence[hold]);
    const at = rows.indexOf(log.sequences.row(panel.cursor.selected));
    select(at + 1 < rows.length ? rows[at + 1] : null); // a shared block: one after the other
  }

  function section(title, first, count, height) {
    if (title) strips.appendChild(element("div", "wb-title", {}, title));
    const { canvas: target, context } = canvas(strips, "wb-grid");
    const grid = Object.assign(new Grid(target, context, first, count), { height });
    panel.listen(target, "mousemove", (event) => {
      hovered = { event, place: grid.at(event) };
      tell();
    });
    panel.listen(target, "mouseleave", () => ((hovered = null), panel.tooltip.hide()));
    panel.listen(target, "click", (event) => {
      const place = grid.at(event);
      if (place >= 0) choose(place);
    });
    pointed.listen(grid);
    return grid;
  }

  function lay(about) {
    strips.replaceChildren();
    const several = about.groups.length > 1;
    grids = about.groups.map((group) =>
      section(several ? group.title : "", group.first, group.count, HEIGHT / about.groups.length),
    );
    if (about.num_slots)
      grids.push(section("host", about.num_blocks, about.num_slots, HOST_HEIGHT));
  }

  function tell() {
    if (!hovered || hovered.place < 0 || !log) return panel.tooltip.hide();
    panel.tooltip.show(hovered.event, explain(log, hovered.place));
  }

  const drag = (event) => {
    if (event.buttons & 1)
      panel.cursor.go(log.about.first_step + chart.row(event, log.numSteps));
  };
  panel.listen(use.canvas, "mousedown", drag);
  panel.listen(use.canvas, "mousemove", drag);
  panel.listen(panel.root, "keydown", (event) => {
    if (event.key === "Escape") panel.cursor.select(null);
  });

  return {
    traits: ["history", "tail", "about"],

    async load(newest) {
      const about = panel.model.get("about");
      const sent = panel.model.get("history");
      if (old.sent !== sent) old = { sent, part: await unpackColumns(sent) };
      const more = await unpackColumns(panel.model.get("tail"));
      if (!newest()) return;
      const all = joined(old.part, more);
      const sizes = ({ first_step, ...others }) => JSON.stringify(others);
      const same = log && sizes(log.about) === sizes(about);
      log = all && Object.assign(new KVLog(about, all), { version: ++version });
      if (!same && log) lay(about);
    },

    draw(step, theme) {
      if (!log || !log.numSteps) return (head.textContent = "nothing has been recorded yet");
      log.go(step);
      const chosen = log.sequences.row(panel.cursor.selected);
      const table = chosen === undefined ? null : log.table(chosen);
      const lit = table && litBy(log, chosen, table);
      if (look?.theme !== theme)
        look = { theme, ...looks(theme, Math.min(255, log.about.block_size)) };
      const marks = [...log.marked()];
      const width = left.clientWidth;
      for (const grid of grids) {
        grid.resize(width, grid.height);
        grid.paint(log.cells, look, lit);
        drawMarks(grid, marks, theme);
        if (table) grid.path(table.map(({ place }) => place), theme);
        pointed.draw(grid, theme);
      }
      chart.draw({
        series: () => useOf(log, theme),
        rows: log.numSteps,
        row: log.row,
        ends: [log.about.first_step, log.about.first_step + log.numSteps - 1],
        version: log.version,
        theme,
        top: log.about.num_blocks,
      });
      lookups.draw(log);
      legend(signs, log, look);
      const said = sentence(log);
      head.textContent = table
        ? `${said}. ${log.sequences.title(chosen)} holds ${table.length} blocks`
        : said;
      if (pointed.place >= 0) pointed.say(); // another step: the same block says something else
      tell();
      return head.textContent;
    },
  };
}

/** 1 for each place that has to do with a sequence: held by it, left by it, or kept for it. */
function litBy(log, sequence, table) {
  const lit = log.cells.map((cell) => (ownerOf(cell) === sequence ? 1 : 0));
  for (const { place } of table) lit[place] = 1;
  return lit;
}

/** Use over time: blocks in use, with those cached and free, and what the tokens would fill. */
function useOf(log, theme) {
  const both = log.used.map((used, row) => used + log.cached[row]);
  const held = Float64Array.from(log.tokens_held, (tokens) => tokens / log.about.block_size);
  return [
    { area: true, colour: mix(theme.paper, theme.ink, 0.22), at: column(both) },
    { area: true, colour: mix(theme.paper, theme.accent, 0.55), at: column(log.used) },
    { colour: theme.ink, at: column(held) },
  ];
}

export default mount("kv-cache", build);
