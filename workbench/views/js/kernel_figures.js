// What a trial came to, as figures beside the machine's ceilings. Sums only, no DOM.
import { bytes, short } from "./numbers.js";

/** {intensity, ridge, memory, compute}: FLOP a byte of the case, and the roof; null without one. */
export function roof(facts) {
  const limits = facts.ceilings;
  if (!limits || !facts.num_bytes) return null;
  const memory = Math.max(limits.copy, limits.read);
  return {
    intensity: facts.flops / facts.num_bytes,
    memory,
    compute: limits.gemm,
    ridge: limits.gemm / memory,
  };
}

/** FLOP/s that the roof allows at an intensity. */
export function roofAt({ memory, compute }, intensity) {
  return Math.min(memory * intensity, compute);
}

/** Rates of a case that takes `us`: bytes/s, FLOP/s and the share of the roof. */
export function rates(facts, us) {
  const seconds = us * 1e-6;
  const found = { bandwidth: facts.num_bytes / seconds, flops: facts.flops / seconds, share: null };
  const top = roof(facts);
  if (top) {
    const least = Math.max(facts.num_bytes / top.memory, facts.flops / top.compute);
    found.share = least / seconds;
  }
  return found;
}

const times = (value) => `${value.toFixed(2)}×`;

/** [[name, figure, more], …] of what is selected; `taken`: its launches' resources, if known. */
export function trialTiles(trial, taken, facts) {
  const tiles = [];
  const add = (name, figure, more = "") => tiles.push([name, figure, more]);
  if (trial?.us) {
    const { p10, p50, p90, n, rel_error: error } = trial.us;
    add("latency", `${short(p50)} µs`, `${short(p10)}–${short(p90)}, n=${n}, ±${(100 * error).toFixed(2)} %`);
    if (trial.default_us) add("against the default", times(trial.default_us / p50), `${short(trial.default_us)} µs in turn`);
    const library = facts.finals?.library?.p50;
    if (library) add("against the library", times(library / p50), `${short(library)} µs`);
    const { bandwidth, flops, share } = rates(facts, p50);
    add("traffic", `${(bandwidth / 1e12).toFixed(2)} TB/s`, `${bytes(facts.num_bytes)} at least`);
    add("arithmetic", `${short(flops / 1e12)} TFLOP/s`, `${short(facts.flops / 1e9)} GFLOP`);
    if (share !== null) add("of the ceiling", `${(100 * share).toFixed(0)} %`, "measured in the same run");
  } else if (trial?.status === "ok") add("latency", "–", "needs a GPU");
  if (trial && trial.max_err !== null)
    add("max error", trial.max_err.toExponential(1), `${(100 * trial.share).toFixed(0)} % of tolerance`);
  for (const each of taken ?? []) {
    const held = each.occupancy ? `${each.occupancy.warps}/${each.occupancy.of} warps (${each.occupancy.limit})` : "";
    const parts = [`${each.spills} spills`, bytes(each.shared), held].filter(Boolean);
    add(each.kernel.replace(/_kernel$/, ""), `${each.registers} regs`, parts.join(", "));
  }
  return tiles;
}

/** Points of the roofline: [{name, x, y, strong}], x in FLOP a byte, y in FLOP/s. */
export function rooflinePoints(trial, rows, facts) {
  const top = roof(facts);
  if (!top) return [];
  const at = (name, us, strong = false) => ({ name, x: top.intensity, y: rates(facts, us).flops, strong });
  const points = rows.filter((row) => row.us && row.status === "ok").map((row) => at("", row.us.p50));
  if (facts.finals?.library) points.push(at("library", facts.finals.library.p50));
  if (trial?.us) points.push(at("selected", trial.us.p50, true));
  return points;
}
