// A kernel's tuning space as a grid: every configuration one cell. Sums only, no DOM.

/** A configuration as one text, the same whatever the order of its names; as `config_key`. */
export function configKey(config) {
  return Object.keys(config).sort().map((name) => `${name}=${config[name]}`).join(" ");
}

/** Every constant's values, ascending: those of the space, and what configurations have beside. */
export function axesOf(space, configs) {
  const names = Object.keys(configs[0] ?? space);
  return names.map((name) => {
    const values = new Set(space[name] ?? []);
    for (const config of configs) if (name in config) values.add(config[name]);
    return { name, values: [...values].sort((a, b) => a - b) };
  });
}

const product = (axes) => axes.reduce((size, { values }) => size * values.length, 1);

/**
 * Lay the axes out: {columns, rows, width, height}, axes of columns and of rows, outermost first.
 *
 * Of all ways to part them the one whose grid is nearest to `aspect`, width over height.
 */
export function layOut(axes, aspect = 2) {
  let best = null;
  for (let mask = 0; mask < 1 << axes.length; mask++) {
    const columns = axes.filter((_, k) => mask & (1 << k));
    const rows = axes.filter((_, k) => !(mask & (1 << k)));
    const [width, height] = [product(columns), product(rows)];
    const off = Math.abs(Math.log(width / height / aspect));
    if (!best || off < best.off) best = { columns, rows, width, height, off };
  }
  return best;
}

/** [column, row] of a configuration in a layout, null if a value of it is on no axis. */
export function cellOf(layout, config) {
  const along = (axes) => {
    let at = 0;
    for (const { name, values } of axes) {
      const digit = values.indexOf(config[name]);
      if (digit < 0) return null;
      at = at * values.length + digit;
    }
    return at;
  };
  const [column, row] = [along(layout.columns), along(layout.rows)];
  return column === null || row === null ? null : [column, row];
}

/** The configuration of a cell. */
export function configAt(layout, column, row) {
  const config = {};
  const put = (axes, at) => {
    for (const { name, values } of [...axes].reverse()) {
      config[name] = values[at % values.length];
      at = Math.floor(at / values.length);
    }
  };
  put(layout.columns, column);
  put(layout.rows, row);
  return config;
}

/** The cell that an arrow key leads to: the next one that `exists` in that direction, or null. */
export function step(layout, [column, row], [dx, dy], exists) {
  for (let n = 1; n < Math.max(layout.width, layout.height); n++) {
    const [x, y] = [column + dx * n, row + dy * n];
    if (x < 0 || y < 0 || x >= layout.width || y >= layout.height) return null;
    if (exists(x, y)) return [x, y];
  }
  return null;
}

// What cells may be coloured by: title, value of a trial (and its resources), and whether less is
// better. A value of null is not known.
const most = (taken, name) => (taken?.length ? Math.max(...taken.map((each) => each[name])) : null);
export const MEASURES = {
  latency: { title: "latency, µs", of: (trial) => trial.us?.p50 ?? null },
  registers: { title: "registers a thread", of: (_, taken) => most(taken, "registers") },
  shared: { title: "shared memory, bytes", of: (_, taken) => most(taken, "shared") },
  spills: { title: "spills", of: (_, taken) => most(taken, "spills") },
  error: { title: "error, share of tolerance", of: (trial) => trial.share ?? null },
};

/** Where a value lies between the least and the most, on a logarithmic scale where it can be. */
export function shareOf(value, low, high) {
  if (!(high > low)) return 0;
  if (low > 0) return Math.log(value / low) / Math.log(high / low);
  return (value - low) / (high - low);
}

const CIVIDIS = [
  [0, 34, 78], [35, 62, 108], [67, 78, 108], [98, 101, 113], [125, 124, 120],
  [155, 148, 117], [188, 174, 108], [222, 203, 86], [254, 232, 56],
];

/** Cividis from 0 (dark blue) to 1 (yellow): read alike by colour-blind readers. */
export function cividis(share) {
  const at = Math.max(0, Math.min(1, share)) * (CIVIDIS.length - 1);
  const k = Math.min(CIVIDIS.length - 2, Math.floor(at));
  return CIVIDIS[k].map((value, i) => Math.round(value + (CIVIDIS[k + 1][i] - value) * (at - k)));
}
