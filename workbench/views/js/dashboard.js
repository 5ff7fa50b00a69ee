// EngineDashboard in the browser: controls, tiles, charts over the steps, memory, requests.
import { joined, unpackColumns } from "./buffers.js";
import { css, mix, rgb, HUES } from "./colours.js";
import { ControlBar, RequestTable } from "./controls.js";
import { Meters, tiles } from "./meters.js";
import { bytes } from "./numbers.js";
import { canvas, element, mount } from "./panel.js";
import { column, SeriesChart } from "./series.js";
import { showTiles } from "./tiles.js";

const BLUE = rgb(HUES[4]);
const ORANGE = rgb(HUES[0]);
const GREEN = rgb(HUES[2]);

const growth = (meters, name) => (from, to) => {
  const value = meters.between(name, Math.max(0, from - 1), to - 1) ?? 0;
  return [value, value];
};

/** What each chart shows: title, series of the meters and a theme, top of the scale. */
const CHARTS = [
  {
    title: "generated, tokens/s",
    series: (m, theme) => [{ area: true, colour: mix(theme.paper, BLUE, 0.75), at: growth(m, "made") }],
  },
  {
    title: "sequences: running (area), waiting (line)",
    series: (m, theme) => [
      { area: true, colour: mix(theme.paper, GREEN, 0.7), at: column(m.running) },
      { colour: ORANGE, at: column(m.waiting) },
    ],
  },
  {
    title: "KV blocks in use",
    series: (m, theme) => [{ area: true, colour: mix(theme.paper, BLUE, 0.55), at: column(m.used) }],
    top: (about) => about.num_blocks,
  },
  {
    title: "time of a step, ms",
    series: (m, theme) => [{ colour: theme.ink, at: column(m.step_ms) }],
  },
];

function build(panel) {
  const send = (message) => panel.model.send(message);
  const top = panel.body.appendChild(element("div"));
  let [controls, requests] = [null, null];
  const figures = panel.body.appendChild(element("div", "wb-tiles"));
  const grid = panel.body.appendChild(element("div", "wb-charts"));
  const charts = CHARTS.map(({ title }) => new SeriesChart(canvas(grid, "wb-chart"), title));
  const memory = panel.body.appendChild(element("div", "wb-memory"));
  const below = panel.body.appendChild(element("div"));
  let [meters, about, old, version] = [null, {}, {}, 0];

  for (const chart of charts) {
    const drag = (event) => {
      if (event.buttons & 1 && meters?.numRows)
        panel.cursor.go(meters.step[chart.row(event, meters.numRows)]);
    };
    panel.listen(chart.canvas, "mousedown", drag);
    panel.listen(chart.canvas, "mousemove", drag);
  }

  const control = () => {
    const now = panel.model.get("control") ?? {};
    if (!now.state) return;
    controls ??= new ControlBar(panel, top, send);
    requests ??= new RequestTable(panel, below, send);
    controls.show(now, panel.model.get("notice"));
    requests.show(now);
  };
  panel.hear("change:control", control);
  panel.hear("change:notice", control);
  control();

  return {
    traits: ["history", "tail", "about"],

    async load(newest) {
      const sent = panel.model.get("history");
      if (old.sent !== sent) old = { sent, part: await unpackColumns(sent) };
      const more = await unpackColumns(panel.model.get("tail"));
      if (!newest()) return;
      about = panel.model.get("about");
      const all = joined(old.part, more);
      meters = all && new Meters(all);
      version++;
    },

    draw(step, theme) {
      if (!meters?.numRows) {
        figures.textContent = "no step yet";
        return "engine: no step yet";
      }
      const row = Math.max(0, meters.row(step));
      showTiles(figures, tiles(meters, about, row));
      const ends = [meters.step[0], meters.step[meters.numRows - 1]];
      CHARTS.forEach(({ series, top: highest }, k) =>
        charts[k].draw({
          series: () => series(meters, theme),
          rows: meters.numRows,
          row,
          ends,
          version,
          theme,
          top: highest?.(about),
        }),
      );
      showMemory(memory, about, meters.used[row] / about.num_blocks, theme);
      return tiles(meters, about, row).map(([name, value, more]) => `${name} ${value}, ${more}`).join("; ");
    },
  };
}

/** The device's memory by owner, as one bar with its words. */
function showMemory(box, about, used, theme) {
  if (!about.cache_bytes) return;
  const parts = [
    ["weights", about.weight_bytes, mix(theme.paper, theme.ink, 0.45)],
    ["KV in use", about.cache_bytes * used, mix(theme.paper, BLUE, 0.75)],
    ["KV free or kept for reuse", about.cache_bytes * (1 - used), mix(theme.paper, BLUE, 0.25)],
  ];
  const all = about.weight_bytes + about.cache_bytes;
  const bar = element("div", "wb-owners");
  const words = element("div", "wb-legend");
  for (const [name, count, colour] of parts) {
    const part = bar.appendChild(element("div", "", { title: `${name}: ${bytes(Math.round(count))}` }));
    part.style.width = `${(100 * count) / all}%`;
    part.style.background = css(colour);
    const entry = words.appendChild(element("span", "wb-entry"));
    const swatch = entry.appendChild(element("span", "wb-swatch"));
    swatch.style.background = css(colour);
    entry.append(`${name} ${bytes(Math.round(count))}`);
  }
  box.replaceChildren(bar, words);
}

export default mount("dashboard", build);
