// Numbers as a reader wants them. No DOM.

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
