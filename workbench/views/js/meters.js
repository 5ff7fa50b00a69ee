// An engine's figures at any step, from the rows that meters.py writes. No DOM.
import { lowerBound, upperBound } from "./buffers.js";
import { duration, short } from "./numbers.js";

const SECONDS = 1; // over which a throughput is meant
const MOST_LATENCIES = 1000; // the latest, of which percentiles are taken

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
