// A KV cache in words: what hovering over a block says, and one sentence on a step. No DOM.
import { MARKS, fillOf, isFindable, isOnHost, referencesOf } from "./kv_log.js";

const NOTHING = 0xffffffff;
const MOST_TEXT = 240; // characters of a block's tokens
const MOST_LINEAGE = 6;

/** [[label, text], ...] on a place at the log's present step. */
export function explain(log, place) {
  const { about, cells } = log;
  const cell = cells[place];
  const rows = [];
  if (place >= about.num_blocks) rows.push(["host slot", String(place - about.num_blocks)]);
  else rows.push(["block", `${place}${groupName(about, place)}`]);
  rows.push(["state", state(log, place)]);
  const holds = log.holders(place);
  for (const hold of holds.slice(0, 5)) {
    const title = log.sequences.title(log.hold_sequence[hold]);
    rows.push([hold === holds[0] ? "held by" : "", `${title}, its block ${log.hold_index[hold]}`]);
  }
  if (holds.length > 5) rows.push(["", `and ${holds.length - 5} more`]);
  if (referencesOf(cell)) rows.push(["references", references(cell, holds.length)]);
  const source = holds[0] ?? (isFindable(cell) ? log.lastHolder(place) : undefined);
  if (source !== undefined) {
    if (!holds.length) {
      const title = log.sequences.title(log.hold_sequence[source]);
      rows.push(["left by", `${title}, its block ${log.hold_index[source]}`]);
    }
    const tokens = text(log, source, fillOf(cell));
    if (tokens) rows.push(["tokens", tokens]);
  }
  if (isFindable(cell) && place < about.num_blocks) rows.push(["hash", lineage(log, place, source)]);
  if (isOnHost(cell)) rows.push(["host", "a host slot has the same content"]);
  for (const mark of log.marked())
    if (mark.place === place) rows.push([`step ${log.step}`, happened(log, mark)]);
  return rows;
}

function groupName(about, place) {
  if (about.groups.length < 2) return "";
  const group = about.groups.find((g) => place >= g.first && place < g.first + g.count);
  return `, ${group.title}`;
}

function state(log, place) {
  const { about, cells } = log;
  const cell = cells[place];
  const [full, fill] = [about.block_size, fillOf(cell)];
  const size = full > 255 ? `about ${Math.round((fill * full) / 255)}` : fill;
  if (place >= about.num_blocks) {
    if (!cell) return "empty";
    return referencesOf(cell) ? "kept for a swapped-out sequence" : "holds an evicted block";
  }
  if (!cell) return "blank";
  if (!referencesOf(cell)) return "free, and can be found by its content";
  const kind = referencesOf(cell) > 1 ? "shared" : "used";
  return `${kind}, ${size} of ${full} tokens${isFindable(cell) ? ", can be found" : ""}`;
}

function references(cell, owners) {
  const count = referencesOf(cell);
  if (count === 7) return owners > 7 ? String(owners) : "7 or more";
  return count > owners ? `${count}, ${count - owners} of them of copies to be made` : `${count}`;
}

function text(log, hold, fill) {
  const { block_size } = log.about;
  const count = block_size > 255 ? Math.ceil((fill * block_size) / 255) : fill;
  const start = log.hold_index[hold] * block_size;
  const ids = log.sequences.tokens(log.hold_sequence[hold], start, count);
  const whole = log.sequences.text(ids);
  return whole.length > MOST_TEXT ? `${whole.slice(0, MOST_TEXT)}…` : whole;
}

function lineage(log, place, hold) {
  if (hold === undefined) return log.name(place) ?? "unknown";
  const names = log.lineage(hold).map((name) => name ?? "?");
  const shown = names.slice(0, MOST_LINEAGE);
  const rest = names.length - shown.length;
  return shown.join(" ← ") + (rest ? ` ← ${rest} more` : "");
}

function happened(log, { place, bits, other }) {
  const { about, sequences } = log;
  const has = (name) => bits & (1 << MARKS.indexOf(name));
  const known = other !== NOTHING;
  const where = (p) => (p >= about.num_blocks ? `host slot ${p - about.num_blocks}` : `block ${p}`);
  const onHost = place >= about.num_blocks;
  const said = [];
  if (has("evicted")) {
    const row = known ? sequences.row(other) : undefined;
    const cause = row === undefined ? (known ? `for sequence ${other}` : "") : `for ${sequences.title(row)}`;
    said.push(has("offloaded") ? "evicted" : `evicted ${cause}`.trim());
  }
  if (has("offloaded")) said.push(onHost ? `took over ${where(other)}` : `offloaded to ${where(other)}`);
  if (has("restored")) said.push(onHost ? `gave to ${where(other)}` : `restored from ${where(other)}`);
  if (has("copied")) said.push(`copied from ${where(other)} (copy-on-write)`);
  if (has("hit")) said.push("taken over by another sequence");
  if (has("new")) said.push("newly taken");
  return said.join(", ");
}

/** One sentence on the present step, for screen readers and the line above the grid. */
export function sentence(log) {
  const { about, row } = log;
  const blocks = about.num_blocks;
  const parts = [`${log.used[row]} of ${blocks} blocks used`];
  if (log.shared[row]) parts.push(`${log.shared[row]} shared`);
  parts.push(`${log.cached[row]} cached and free`);
  parts.push(`${blocks - log.used[row] - log.cached[row]} blank`);
  parts.push(`${log.tokens_held[row]} tokens held`);
  if (about.num_slots) parts.push(`host ${log.slots_used[row]} of ${about.num_slots} slots`);
  return `step ${log.step}: ${parts.join(", ")}`;
}
