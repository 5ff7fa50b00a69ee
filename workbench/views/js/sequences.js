// Sequences and their tokens, from the columns that sequence_columns.py writes. No DOM.
import { TokenTexts } from "./token_text.js";

/** Entries of `keys` (values below `count`) by key: `of(k)` are the places where keys[place] is k. */
export function grouped(keys, count) {
  const starts = new Uint32Array(count + 1);
  for (let i = 0; i < keys.length; i++) starts[keys[i] + 1]++;
  for (let k = 0; k < count; k++) starts[k + 1] += starts[k];
  const next = starts.slice();
  const order = new Uint32Array(keys.length);
  for (let i = 0; i < keys.length; i++) order[next[keys[i]]++] = i;
  return { of: (k) => order.subarray(starts[k], starts[k + 1]) };
}

/** Running sums: the place where each entry's part begins, and the end of the last. */
export function offsets(counts) {
  const starts = new Uint32Array(counts.length + 1);
  for (let i = 0; i < counts.length; i++) starts[i + 1] = starts[i] + counts[i];
  return starts;
}

/** Rows are what other columns refer to sequences by; ids are the engine's. */
export class Sequences {
  constructor(columns) {
    this.columns = columns;
    this.ids = columns.sequence_ids;
    this.rows = new Map(Array.from(this.ids, (id, row) => [id, row]));
    this.chunks = grouped(columns.chunk_sequence, this.ids.length);
    this.chunkStarts = offsets(columns.chunk_count);
    this.texts = new TokenTexts(columns);
  }

  get count() {
    return this.ids.length;
  }

  /** The row of a sequence id; undefined if this trace has no such sequence. */
  row(id) {
    return this.rows.get(id);
  }

  /** A sequence in a few words. */
  title(row) {
    const branch = this.columns.branches[row] ? `, branch ${this.columns.branches[row]}` : "";
    return `${this.columns.request_ids[row]} (sequence ${this.ids[row]}${branch})`;
  }

  /** Token ids of a sequence from position `start` on, `count` at most. */
  tokens(row, start, count) {
    const { chunk_count, token_ids } = this.columns;
    const found = [];
    let at = 0;
    for (const chunk of this.chunks.of(row)) {
      if (at >= start + count) break;
      const from = Math.max(0, start - at);
      const to = Math.min(chunk_count[chunk], start + count - at);
      for (let k = from; k < to; k++) found.push(token_ids[this.chunkStarts[chunk] + k]);
      at += chunk_count[chunk];
    }
    return found;
  }

  /** Tokens as text. */
  text(ids) {
    return this.texts.run(ids).join("");
  }
}
