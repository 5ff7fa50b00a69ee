// Binary traits as typed arrays, and event logs that run forwards and backwards.

/** A typed array over what a Bytes trait holds; copies where the bytes lie unaligned. */
export function typed(T, data) {
  const { buffer, byteOffset, byteLength } = data.buffer ? data : new DataView(data);
  const count = Math.floor(byteLength / T.BYTES_PER_ELEMENT);
  if (byteOffset % T.BYTES_PER_ELEMENT === 0) return new T(buffer, byteOffset, count);
  return new T(buffer.slice(byteOffset, byteOffset + count * T.BYTES_PER_ELEMENT));
}

/** What Python's `packed(array)` sent (zlib), as a typed array; empty for an empty trait. */
export async function unpack(T, data) {
  if (!data || !data.byteLength) return new T(0);
  const stream = new Blob([data]).stream().pipeThrough(new DecompressionStream("deflate"));
  return typed(T, await new Response(stream).arrayBuffer());
}

/**
 * Move `cells` from step `from` to step `to`, in place.
 *
 * places[k], masks[k]: change k flips these bits of this cell; starts[s] .. starts[s + 1] are the
 * changes of step s. XOR is its own inverse, so one log runs both ways.
 */
export function scrub(cells, places, masks, starts, from, to) {
  const [low, high] = from < to ? [from, to] : [to, from];
  const end = starts[high + 1];
  for (let k = starts[low + 1]; k < end; k++) cells[places[k]] ^= masks[k];
  return cells;
}

/** The first place in a sorted array whose value is >= x. */
export function lowerBound(sorted, x) {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The number of values in a sorted array that are <= x: the place after the last of them. */
export function upperBound(sorted, x) {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= x) low = middle + 1;
    else high = middle;
  }
  return low;
}

const TYPES = {
  u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i4: Int32Array, f4: Float32Array, f8: Float64Array,
};

/** What Python's `packed_columns` sent: {name: typed array or list}; null for an empty trait. */
export async function unpackColumns(data) {
  const bytes = await unpack(Uint8Array, data);
  if (!bytes.length) return null;
  const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  const read = { ...header.lists };
  let at = 4 + length;
  for (const [name, [type, count]] of Object.entries(header.columns)) {
    read[name] = new TYPES[type](count);
    const width = read[name].BYTES_PER_ELEMENT;
    const planes = bytes.subarray(at, (at += count * width));
    const target = new Uint8Array(read[name].buffer);
    for (let plane = 0; plane < width; plane++)
      for (let k = 0; k < count; k++) target[k * width + plane] = planes[plane * count + k];
  }
  return read;
}

/** Two parts of a log as one: each column and list of `old`, then that of `more`. */
export function joined(old, more) {
  if (!old || !more) return old ?? more;
  const all = {};
  for (const [name, values] of Object.entries(old)) {
    if (Array.isArray(values)) all[name] = [...values, ...more[name]];
    else {
      all[name] = new values.constructor(values.length + more[name].length);
      all[name].set(values);
      all[name].set(more[name], values.length);
    }
  }
  return all;
}
