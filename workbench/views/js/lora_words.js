// Adapters as a reader wants them: cells of a table, tiles, owners of rank rows. No DOM.
import { bytes, duration, short } from "./numbers.js";

export const NOBODY = -1;

/** Which adapter, by its place in the list, owns each rank row; `NOBODY` where it is free. */
export function rowOwners(adapters, numRows) {
  const owners = new Int32Array(numRows).fill(NOBODY);
  adapters.forEach(({ rows }, place) => {
    for (const row of rows) owners[row] = place;
  });
  return owners;
}

/** Runs of rows with one owner, as [owner, first row, how many]. */
export function ownerRuns(owners) {
  const runs = [];
  for (let row = 0; row < owners.length; row++) {
    const last = runs.at(-1);
    if (last && last[0] === owners[row]) last[2]++;
    else runs.push([owners[row], row, 1]);
  }
  return runs;
}

/** What share of the starts found the adapter on the device; a dash before the first. */
export function hitShare(hits, misses) {
  return hits + misses ? `${((100 * hits) / (hits + misses)).toFixed(0)} %` : "–";
}

/** The cells of an adapter's row, in the order of `COLUMNS`. */
export const COLUMNS = ["adapter", "tier", "rank", "size", "requests", "running", "tok/s", "hits", "last moves"];
export function adapterCells(adapter) {
  const tier = [adapter.tier, adapter.pinned ? "pinned" : "", adapter.leaving ? "leaving" : ""];
  const moves = Object.entries(adapter.ms).map(([move, ms]) => `${move} ${duration(ms)}`);
  return [
    adapter.name,
    tier.filter(Boolean).join(", "),
    String(adapter.rank),
    bytes(adapter.bytes),
    String(adapter.requests),
    String(adapter.running),
    short(adapter.rate),
    `${hitShare(adapter.hits, adapter.misses)} of ${adapter.hits + adapter.misses}`,
    moves.join(", ") || "–",
  ];
}

/** The tiles above the table: [name, value, what beside it]. */
export function loraTiles(adapters, device) {
  const count = (tier) => adapters.filter((adapter) => adapter.tier === tier).length;
  const sum = (name) => adapters.reduce((total, adapter) => total + adapter[name], 0);
  const used = device.num_rows - device.num_free;
  const limit = device.host_limit === null ? "no bound" : `of ${bytes(device.host_limit)}`;
  return [
    ["adapters", String(adapters.length), `${count("device")} device, ${count("host")} host, ${count("disk")} disk`],
    ["rank rows", `${used} of ${device.num_rows}`, device.bounded ? "fixed" : "grows as needed"],
    ["on the device", bytes(device.device_bytes), "rows in use and free"],
    ["in host memory", bytes(device.host_bytes), limit],
    ["hits", hitShare(sum("hits"), sum("misses")), `${sum("misses")} brought to the device`],
    ["through adapters", `${short(sum("rate"))} tok/s`, `${sum("requests")} requests`],
    ["base", `${short(device.base.rate)} tok/s`, `${device.base.requests} requests`],
  ];
}
