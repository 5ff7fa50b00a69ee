// Blocks by keyboard: arrows move a cell cursor over the focused grid, and its block is announced.
import { css } from "./colours.js";
import { element } from "./panel.js";

const REST_MS = 300; // a screen reader hears of where the cursor rests, not of each cell on the way

/** Where a key takes the cursor, by places of its grid; null for a key that is none of its. */
export function moved({ columns }, count, cell, key) {
  const goals = {
    ArrowLeft: cell - 1,
    ArrowRight: cell + 1,
    ArrowUp: cell - columns,
    ArrowDown: cell + columns,
  };
  if (!(key in goals)) return null;
  if (cell < 0) return 0; // the first key only shows where it is
  return goals[key] >= 0 && goals[key] < count ? goals[key] : cell;
}

/** [[label, text], ...] as one sentence. */
export function spoken(rows) {
  return rows.map(([label, text]) => `${label} ${text}`.trim()).join("; ");
}

/**
 * The cursor of all grids of a panel; `place` is -1 while there is none.
 *
 * grids(): all of them, in order; words(place): rows that explain a place; changed(place) when it
 * has moved; chosen(place) at Enter.
 */
export class CellCursor {
  constructor(panel, { grids, words, changed, chosen }) {
    Object.assign(this, { panel, grids, words, changed, chosen, place: -1, timer: null });
    const quiet = { "aria-live": "polite", role: "status" };
    this.voice = panel.root.appendChild(element("div", "wb-spoken wb-cell", quiet));
    panel.own(() => clearTimeout(this.timer));
  }

  /** Take the keys of a grid. Away from it there is no cursor; steps stay on Home, End, page keys. */
  listen(grid) {
    const { panel } = this;
    grid.canvas.setAttribute("aria-description", "Arrow keys go from block to block, Enter selects");
    panel.listen(grid.canvas, "keydown", (event) => this.key(event, grid));
    panel.listen(grid.canvas, "blur", () => this.go(-1));
    panel.listen(grid.canvas, "mousemove", () => this.place >= 0 && this.leave());
  }

  key(event, grid) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    if (event.key === "Enter" && this.place >= 0) this.chosen(this.place);
    else {
      const own = this.place - grid.first;
      const cell = own >= 0 && own < grid.count ? own : -1;
      const next = moved(grid.shape, grid.count, cell, event.key);
      if (next === null) return;
      this.go(grid.first + next);
    }
    event.preventDefault();
    event.stopPropagation();
  }

  go(place) {
    if (place === this.place) return;
    this.place = place;
    this.changed(place);
    if (place >= 0) this.say();
    else this.voice.textContent = "";
  }

  /** Give way to the mouse, which shows its own block. */
  leave() {
    this.place = -1;
    this.voice.textContent = "";
    this.panel.ask();
  }

  say() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      if (this.place >= 0) this.voice.textContent = spoken(this.words(this.place));
    }, REST_MS);
  }

  /** The cursor's lower right corner, as a pointer's place. */
  corner() {
    for (const grid of this.grids()) {
      const middle = grid.middle(this.place);
      if (!middle) continue;
      const box = grid.canvas.getBoundingClientRect();
      const half = grid.side / 2;
      const at = (start, n) => start + (n + half) / grid.scale - 8;
      return { clientX: at(box.left, middle.x), clientY: at(box.top, middle.y) };
    }
    return { clientX: 0, clientY: 0 };
  }

  draw(grid, theme) {
    const middle = grid.middle(this.place);
    if (!middle) return;
    const { context, side } = grid;
    const reach = Math.max(side / 2, 4 * grid.scale);
    for (const [colour, width] of [[theme.paper, 6], [theme.accent, 3]]) {
      context.strokeStyle = css(colour);
      context.lineWidth = width * grid.scale;
      context.strokeRect(middle.x - reach, middle.y - reach, 2 * reach, 2 * reach);
    }
  }
}
