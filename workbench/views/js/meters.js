// An engine's figures at any step, from the rows that meters.py writes. No DOM.
import { upperBound } from "./buffers.js";

const SECONDS = 1; // over which a throughput is meant
const MOST_LATENCIES = 1000; // the latest, of which percentiles are taken

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

/** The value below which a share of the values lie; null of none. */
export function percentile(values, share) {
  if (!values.length) return null;
  const sorted = Float64Array.from(values).sort();
  return sorted[Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1)] ?? sorted[0];
}

export class Meters {
  constructor(columns) {
    Object.assign(this, columns);
  }

  get numRows() {
    return this.step.length;
  }

  /** The row of a step, or of the last one before it; -1 before the first. */
  row(step) {
    return upperBound(this.step, step) - 1;
  }

  /** What a sum grew by per second, between two rows; null where no time passed. */
  between(name, from, to) {
    const seconds = this.time[to] - this.time[from];
    return seconds > 0 ? (this[name][to] - this[name][from]) / seconds : null;
  }

  /** Growth per second over the last second before a row; as `_rate` in dashboard.py. */
  rate(name, row) {
    const first = Math.min(lowerBound(this.time, this.time[row] - SECONDS), row - 1);
    return first < 0 ? null : this.between(name, first, row);
  }

  /** [median, 95th percentile] of the latest latencies known at a row: `ttft` or `tpot`, in ms. */
  latency(kind, row) {
    const end = upperBound(this[`${kind}_row`], row);
    const latest = this[`${kind}_ms`].subarray(Math.max(0, end - MOST_LATENCIES), end);
    return [percentile(latest, 0.5), percentile(latest, 0.95)];
  }

  /** One sum as a share of another, at a row; null of nothing. */
  share(part, whole, row) {
    return this[whole][row] ? this[part][row] / this[whole][row] : null;
  }
}

/** A number as a reader wants it: three figures, and a dash for none. */
export function short(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value >= 99_950) return `${(value / 1000).toFixed(0)}k`;
  if (value >= 9_995) return `${(value / 1000).toFixed(1)}k`;
  if (value >= 100 || Number.isInteger(value)) return value.toFixed(0);
  return value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

/** Milliseconds with their unit, or seconds from one on. */
export function duration(ms) {
  if (ms === null) return "–";
  return ms >= 1000 ? `${short(ms / 1000)} s` : `${short(ms)} ms`;
}

/** Bytes with a binary unit. */
export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; count >= 1024 && unit < units.length - 1; unit++) count /= 1024;
  return `${unit ? count.toFixed(1) : count} ${units[unit]}`;
}

const percent = (share) => (share === null ? "–" : `${(100 * share).toFixed(0)} %`);

/** The tiles at a row: [name, value, what beside it]. */
export function tiles(meters, about, row) {
  const [ttft, slowTtft] = meters.latency("ttft", row);
  const [tpot, slowTpot] = meters.latency("tpot", row);
  const used = meters.used[row] / about.num_blocks;
  const waits = [`${meters.waiting[row]} waiting`];
  if (meters.paused[row]) waits.push(`${meters.paused[row]} paused`);
  const drafted = meters.drafted[row];
  return [
    ["generated", `${short(meters.rate("made", row))} tok/s`, `${short(meters.made[row])} in all`],
    ["computed", `${short(meters.rate("computed", row))} tok/s`, `${short(meters.computed[row])} in all`],
    ["TTFT", duration(ttft), `p95 ${duration(slowTtft)}`],
    ["TPOT", duration(tpot), `p95 ${duration(slowTpot)}`],
    ["running", String(meters.running[row]), waits.join(", ")],
    ["KV blocks", percent(used), `${meters.used[row]} of ${about.num_blocks}`],
    ["prefix hits", percent(meters.share("found", "asked", row)), `of ${short(meters.asked[row])} tokens`],
    ["accepted", percent(meters.share("accepted", "drafted", row)), drafted ? `of ${short(drafted)} drafted` : "no drafts"],
    ["preempted", String(meters.preempted[row]), "so far"],
  ];
}
