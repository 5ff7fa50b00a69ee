// One draft tree on a canvas: boxes for tokens, edges as thick as their probability.
import { css, mix, rgb } from "./colours.js";
import { shortened } from "./token_text.js";

export const TAKEN = rgb("#009E73");
export const ADDED = rgb("#0072B2");
const WHITE = [255, 255, 255];
const BOX = { high: 24, least: 15, gap: 7, wide: [44, 124], between: 26 };
const MOST_HEIGHT = 380; // beyond it rows get closer, as far as they can
const HEAD = 20;

/** The boxes of a tree in a width: [[x, y, wide, high], ...], and the height that they need. */
export function boxesOf({ depths, rows, height, deepest }, width) {
  const pitch = Math.max(BOX.least, Math.min(BOX.high + BOX.gap, MOST_HEIGHT / height));
  const room = (width + BOX.between) / (deepest + 1) - BOX.between;
  const wide = Math.max(BOX.wide[0], Math.min(BOX.wide[1], room));
  const high = Math.min(BOX.high, pitch - 2);
  const boxes = Array.from(depths, (depth, node) => [
    depth * (wide + BOX.between), HEAD + rows[node] * pitch, wide, high,
  ]);
  return { boxes, height: Math.ceil(HEAD + height * pitch) };
}

/** Draw a tree of `treeOf`; returns its boxes. */
export function drawTree({ canvas, context, fit }, tree, run, draft, texts, colours) {
  canvas.style.height = `${boxesOf(tree, canvas.clientWidth).height}px`;
  const { width } = fit();
  const { boxes } = boxesOf(tree, width);
  context.textBaseline = "middle";
  heads(context, tree, boxes, run.columns.draft_at[draft], colours);
  const looks = looksOf(colours);
  // rejected edges first, so that the path lies over them
  const nodes = tree.kinds.map((_, node) => node).slice(1);
  nodes.sort((a, b) => Number(tree.kinds[a] !== "rejected") - Number(tree.kinds[b] !== "rejected"));
  for (const node of nodes) {
    const { line } = looks[tree.kinds[node]];
    edge(context, boxes[tree.parents[node]], boxes[node], line, tree.kinds[node], tree.probabilities[node]);
  }
  context.font = "12px ui-monospace, monospace";
  tree.kinds.forEach((kind, node) => {
    const likely = tree.probabilities[node];
    const share = Number.isNaN(likely) ? "" : likely.toFixed(2).replace(/^0/, "");
    tokenBox(context, boxes[node], texts.shown(tree.tokens[node]), share, looks[kind]);
  });
  return boxes;
}

function looksOf(colours) {
  return {
    root: { fill: mix(colours.paper, colours.ink, 0.12), line: colours.faint, ink: colours.ink },
    accepted: { fill: TAKEN, line: TAKEN, ink: WHITE },
    rejected: { fill: colours.paper, line: colours.faint, ink: colours.faint, dashed: true },
    added: { fill: ADDED, line: ADDED, ink: WHITE },
  };
}

function tokenBox(context, [x, y, wide, high], text, share, { fill, line, ink, dashed }) {
  context.beginPath();
  context.roundRect(x + 0.5, y + 0.5, wide - 1, high - 1, 4);
  context.fillStyle = css(fill);
  context.fill();
  context.setLineDash(dashed ? [3, 2] : []);
  context.strokeStyle = css(line);
  context.lineWidth = 1;
  context.stroke();
  context.setLineDash([]);
  if (high < 12) return;
  context.fillStyle = css(ink);
  context.textAlign = "right";
  const used = share && wide >= 74 ? context.measureText(share).width + 8 : 0;
  if (used) context.fillText(share, x + wide - 6, y + high / 2 + 1);
  context.textAlign = "left";
  const letters = Math.max(1, Math.floor((wide - 12 - used) / 7.3));
  context.fillText(shortened(text, letters), x + 6, y + high / 2 + 1);
}

function edge(context, [x0, y0, w0, h0], [x1, y1, , h1], colour, kind, likely) {
  const taken = kind !== "rejected";
  context.strokeStyle = css(colour, taken ? 1 : 0.6);
  context.lineWidth = Number.isNaN(likely) ? (taken ? 2 : 1) : 0.8 + 2.6 * likely;
  const [from, to] = [[x0 + w0, y0 + h0 / 2], [x1, y1 + h1 / 2]];
  const bend = (to[0] - from[0]) / 2;
  context.beginPath();
  context.moveTo(...from);
  context.bezierCurveTo(from[0] + bend, from[1], to[0] - bend, to[1], ...to);
  context.stroke();
}

function heads(context, { deepest }, [[, , wide]], position, colours) {
  context.font = "11px system-ui, sans-serif";
  context.textAlign = "left";
  context.fillStyle = css(colours.faint);
  for (let depth = 0; depth <= deepest; depth++) {
    const text = depth ? `position ${position + depth - 1}` : "last token";
    context.fillText(shortened(text, Math.floor(wide / 5.6)), depth * (wide + BOX.between) + 2, 9);
  }
}
