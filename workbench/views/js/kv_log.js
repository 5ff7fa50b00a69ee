// The log of a KV cache, and what can be asked of it at any step. No drawing, no DOM.
import { scrub, upperBound } from "./buffers.js";
import { Sequences, grouped, offsets } from "./sequences.js";

const FOREVER = 0xffffffff;

// A cell is 32 bits; kv_log.py packs them.
export const ownerOf = (cell) => (cell & 0x7ffff) - 1; // row in the list of sequences, or -1
export const fillOf = (cell) => (cell >>> 19) & 0xff; // tokens in it (of 255ths: see `unit`)
export const referencesOf = (cell) => (cell >>> 27) & 7; // 7 stands for 7 or more
export const isFindable = (cell) => (cell >>> 30) & 1;
export const isOnHost = (cell) => (cell >>> 31) & 1;

// What happened to a place in a step, as bits; kv_log.py sets them. `other` belongs to the last.
export const MARKS = ["new", "hit", "copied", "evicted", "offloaded", "restored"];

export class KVLog {
  /** about: {first_step, block_size, num_blocks, num_slots}; columns: as kv_log.py names them. */
  constructor(about, columns) {
    Object.assign(this, columns);
    this.about = about;
    this.numPlaces = about.num_blocks + about.num_slots;
    this.numSteps = columns.changes.length;
    this.starts = offsets(columns.changes);
    this.markStarts = offsets(columns.marks);
    this.cells = new Uint32Array(this.numPlaces);
    this.row = -1; // before the first step every cell is blank
    const held = columns.hold_from.length;
    this.hold_to = new Uint32Array(held).fill(FOREVER);
    columns.end_hold.forEach((hold, k) => (this.hold_to[hold] = columns.end_row[k]));
    this.holdsOfBlock = grouped(columns.hold_place, this.numPlaces);
    this.sequences = new Sequences(columns);
    this.holdsOfSequence = grouped(columns.hold_sequence, this.sequences.count);
    this.namesOfPlace = grouped(columns.name_place, this.numPlaces);
  }

  /** Bring `cells` to a step (clamped to those there are); returns the step's row. */
  go(step) {
    const row = Math.max(0, Math.min(this.numSteps - 1, step - this.about.first_step));
    scrub(this.cells, this.places, this.masks, this.starts, this.row, row);
    this.row = row;
    return row;
  }

  get step() {
    return this.about.first_step + this.row;
  }

  /** {place, bits, other} of everything that happened in the present step. */
  *marked() {
    for (let k = this.markStarts[this.row]; k < this.markStarts[this.row + 1]; k++)
      yield { place: this.mark_place[k], bits: this.mark_bits[k], other: this.mark_other[k] };
  }

  /** Holds (rows of hold_*) of a place at the present step, oldest first. */
  holders(place) {
    const now = this.row;
    return [...this.holdsOfBlock.of(place)].filter(
      (hold) => this.hold_from[hold] <= now && now < this.hold_to[hold],
    );
  }

  /** The hold of a place that ended last: whose tokens a cached block has; undefined if none. */
  lastHolder(place) {
    let last;
    for (const hold of this.holdsOfBlock.of(place))
      if (this.hold_to[hold] <= this.row && !(this.hold_to[hold] < this.hold_to[last])) last = hold;
    return last;
  }

  /** [{place, index}] of the blocks that a sequence (row) holds at the present step, in order. */
  table(sequence) {
    const now = this.row;
    return [...this.holdsOfSequence.of(sequence)]
      .filter((hold) => this.hold_from[hold] <= now && now < this.hold_to[hold])
      .map((hold) => ({ place: this.hold_place[hold], index: this.hold_index[hold] }))
      .sort((a, b) => a.index - b.index);
  }

  /** The first 32 bits of a place's content hash in a row, as 8 hex digits; null without one. */
  name(place, row = this.row) {
    const changes = this.namesOfPlace.of(place);
    let name = 0;
    for (const change of changes) {
      if (this.name_row[change] > row) break;
      name = this.name_hash[change];
    }
    return name ? name.toString(16).padStart(8, "0") : null;
  }

  /** Hashes of a hold's block and of those before it in its sequence, newest first. */
  lineage(hold) {
    const [sequence, index] = [this.hold_sequence[hold], this.hold_index[hold]];
    const when = Math.min(this.row, this.hold_to[hold] === FOREVER ? this.row : this.hold_to[hold]);
    const blockAt = new Map();
    for (const other of this.holdsOfSequence.of(sequence))
      if (this.hold_from[other] <= when && this.hold_index[other] < index)
        blockAt.set(this.hold_index[other], this.hold_place[other]);
    const names = [this.name(this.hold_place[hold])];
    for (let at = index - 1; at >= 0; at--)
      names.push(blockAt.has(at) ? this.name(blockAt.get(at), when) : null);
    return names;
  }

  /** How many prefix lookups were made up to the present step; they are in order. */
  get numLookups() {
    return upperBound(this.lookup_row, this.row);
  }
}
