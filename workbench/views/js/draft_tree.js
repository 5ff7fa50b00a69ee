// Draft trees: where their nodes stand, and how often each position was accepted. No DOM.

/** Of each node of a draft: its depth from 1. parents: -1 at the root, each before its children. */
export function depthsOf(parents) {
  const depths = new Uint16Array(parents.length);
  for (let node = 0; node < parents.length; node++)
    depths[node] = parents[node] < 0 ? 1 : depths[parents[node]] + 1;
  return depths;
}

/**
 * The nodes of a draft to draw: its root (the last known token), its own, and the token that the
 * model added behind the accepted path.
 *
 * {tokens, parents (-1 for the root), kinds, probabilities, depths (0 for the root), rows, height,
 * deepest}
 */
export function treeOf(run, draft) {
  const { columns, firstNode } = run;
  const own = [firstNode[draft], firstNode[draft + 1]];
  const at = columns.draft_at[draft];
  const tokens = [run.tokenAt(columns.draft_lane[draft], at - 1), ...columns.node_token.subarray(...own)];
  const parents = [-1, ...Array.from(columns.node_parent.subarray(...own), (parent) => parent + 1)];
  const accepted = columns.node_accepted.subarray(...own);
  const kinds = ["root", ...Array.from(accepted, (yes) => (yes ? "accepted" : "rejected"))];
  const probabilities = [NaN, ...columns.node_probability.subarray(...own), NaN];
  parents.push(Math.max(0, kinds.lastIndexOf("accepted")));
  tokens.push(columns.draft_bonus[draft]);
  kinds.push("added");
  return { tokens, parents, kinds, probabilities, ...placed(parents, kinds) };
}

/**
 * Where the nodes of a tree stand: {depths, rows, height, deepest}. Node 0 is the root. A leaf takes
 * a row, a parent stands beside its first child; what was accepted or added comes first, so that the
 * path is the straight line on top.
 */
export function placed(parents, kinds) {
  const children = parents.map(() => []);
  const depths = new Uint16Array(parents.length);
  for (let node = 1; node < parents.length; node++) {
    children[parents[node]].push(node);
    depths[node] = depths[parents[node]] + 1;
  }
  const rows = new Uint16Array(parents.length);
  let height = 0;
  const taken = (node) => (kinds[node] === "accepted" || kinds[node] === "added" ? 0 : 1);
  const visit = (node) => {
    const below = children[node].sort((a, b) => taken(a) - taken(b));
    if (!below.length) rows[node] = height++;
    for (const child of below) visit(child);
    if (below.length) rows[node] = rows[below[0]];
  };
  visit(0);
  return { depths, rows, height, deepest: depths.reduce((a, b) => Math.max(a, b), 0) };
}

/** The node at a place of a tree's boxes: [[x, y, width, height], ...]; -1 for none. */
export function boxAt(boxes, x, y) {
  return boxes.findIndex(([left, top, wide, high]) =>
    x >= left && x < left + wide && y >= top && y < top + high);
}

/**
 * How often each position was accepted, in bins of columns: {tried, accepted}, [positions * bins].
 *
 * A draft tries a position if a node of it is that deep; it is accepted there if its path is.
 */
export function acceptance(run, positions, bins, columnsPerBin) {
  const { draft_column, node_accepted } = run.columns;
  const [tried, accepted] = [new Uint32Array(positions * bins), new Uint32Array(positions * bins)];
  for (let draft = 0; draft < draft_column.length; draft++) {
    const bin = Math.floor(draft_column[draft] / columnsPerBin);
    const [from, to] = [run.firstNode[draft], run.firstNode[draft + 1]];
    const depth = run.draftDepth[draft];
    let path = 0;
    for (let node = from; node < to; node++) path += node_accepted[node];
    for (let k = 0; k < Math.min(depth, positions); k++) tried[k * bins + bin]++;
    for (let k = 0; k < Math.min(path, positions); k++) accepted[k * bins + bin]++;
  }
  return { tried, accepted };
}

/** The depth of each draft of a run. */
export function draftDepths({ columns, firstNode }) {
  return Uint16Array.from(columns.draft_column, (_, draft) => {
    const parents = columns.node_parent.subarray(firstNode[draft], firstNode[draft + 1]);
    return Math.max(0, ...depthsOf(parents));
  });
}

/** Sums over all bins of a position: [tried, accepted]. */
export function overall({ tried, accepted }, position, bins) {
  const sum = (values) => values.subarray(position * bins, (position + 1) * bins).reduce((a, b) => a + b, 0);
  return [sum(tried), sum(accepted)];
}

/** The drafts of a column as [from, to). */
export function draftsIn(draftColumn, column, bound) {
  return [bound(draftColumn, column - 1), bound(draftColumn, column)];
}
