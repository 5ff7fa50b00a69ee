// Reads a KVCacheView's state from stdin, as JSON, and prints what its log says at each step of a
// walk: for test_kv_cache.py, which knows the truth.
import { joined, unpackColumns } from "../../workbench/views/js/buffers.js";
import * as kv from "../../workbench/views/js/kv_log.js";
import { explain, sentence } from "../../workbench/views/js/kv_words.js";

const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const { about, history: old, tail, walk } = JSON.parse(Buffer.concat(chunks).toString());
const bytes = (text) => Buffer.from(text, "base64");
const log = new kv.KVLog(
  about,
  joined(await unpackColumns(bytes(old)), await unpackColumns(bytes(tail))),
);
const { sequences } = log;
const said = [];
for (const step of walk) {
  log.go(step);
  const places = [...log.cells.keys()].map((place) => {
    const cell = log.cells[place];
    const holders = log.holders(place);
    return {
      owner: kv.ownerOf(cell) < 0 ? null : sequences.ids[kv.ownerOf(cell)],
      fill: kv.fillOf(cell),
      references: kv.referencesOf(cell),
      findable: Boolean(kv.isFindable(cell)),
      onHost: Boolean(kv.isOnHost(cell)),
      owners: holders.map((hold) => sequences.ids[log.hold_sequence[hold]]).sort((a, b) => a - b),
      name: place < about.num_blocks ? log.name(place) : null,
      tokens: holders.length
        ? sequences.tokens(
            log.hold_sequence[holders[0]],
            log.hold_index[holders[0]] * about.block_size,
            kv.fillOf(cell),
          )
        : null,
      words: Object.fromEntries(explain(log, place)),
    };
  });
  const tables = Object.fromEntries(
    Array.from(sequences.ids, (id, row) => [id, log.table(row).map(({ place }) => place)]),
  );
  said.push({
    step,
    places,
    tables,
    lookups: log.numLookups,
    sentence: sentence(log),
    marks: [...log.marked()].map(({ place, bits, other }) => [place, bits, other]),
  });
}
console.log(JSON.stringify(said));
