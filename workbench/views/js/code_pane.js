// Source beside what the compiler made of it; a line of one lights up its lines in the other.
import { element } from "./panel.js";

const MOST_LINES = 6000; // of a stage; more is said, and not shown

/** The numbers of the text lines (from 0) that come from a source line (from 1). */
export function linesFrom(lines, source) {
  const found = [];
  lines.forEach((line, at) => line === source && found.push(at));
  return found;
}

/** [first, last] source line that any text line comes from, with some around; null for none. */
export function spanOf(lines, around = 3) {
  const known = lines.filter(Boolean);
  if (!known.length) return null;
  const [low, high] = known.reduce(([a, b], n) => [Math.min(a, n), Math.max(b, n)], [Infinity, 0]);
  return [Math.max(1, low - around), high + around];
}

export class CodePane {
  /** `choose(stage, launch)` tells the kernel which stage to send. */
  constructor(panel, parent, choose) {
    Object.assign(this, { panel, choose, shown: null });
    this.bar = parent.appendChild(element("div", "wb-controls"));
    this.problem = parent.appendChild(element("div", "wb-notice"));
    const columns = parent.appendChild(element("div", "wb-columns wb-codes"));
    this.source = columns.appendChild(element("div", "wb-listing", { tabindex: "0" }));
    this.text = columns.appendChild(element("div", "wb-listing", { tabindex: "0" }));
    this.source.setAttribute("aria-label", "source of the kernel");
    this.text.setAttribute("aria-label", "what the compiler made of it");
    for (const box of [this.source, this.text]) {
      box.setAttribute("data-lm-suppress-shortcuts", "true");
      panel.listen(box, "mouseover", (event) => this.light(event.target, false));
      panel.listen(box, "click", (event) => this.light(event.target, true));
    }
  }

  show(listing) {
    if (this.shown === listing) return;
    this.shown = listing;
    this.problem.textContent = listing.problem ?? "";
    this.problem.hidden = !listing.problem;
    if (!listing.text) {
      if (listing.problem) this.source.replaceChildren(), this.text.replaceChildren();
      return;
    }
    this.stages(listing);
    const span = spanOf(listing.lines) ?? [1, listing.source.split("\n").length];
    const source = listing.source.split("\n").slice(span[0] - 1, span[1]);
    this.source.replaceChildren(...source.map((line, k) => row(span[0] + k, line, span[0] + k)));
    const text = listing.text.split("\n");
    const rows = text.slice(0, MOST_LINES).map((line, k) => row(k + 1, line, listing.lines[k] ?? 0));
    const left = text.length - MOST_LINES;
    if (left > 0) rows.push(element("div", "wb-faint", {}, `and ${left} more lines`));
    this.text.replaceChildren(...rows);
  }

  stages({ stages, launches, stage, seconds }) {
    const launch = launches.indexOf(this.launchName) < 0 ? 0 : launches.indexOf(this.launchName);
    const button = (text, pressed, act) => {
      const made = element("button", "wb-button", { type: "button", "aria-pressed": pressed }, text);
      made.setAttribute("data-lm-suppress-shortcuts", "true");
      made.addEventListener("click", act); // goes with its button
      return made;
    };
    const names = launches.map((name, k) =>
      button(name, k === launch, () => ((this.launchName = name), this.choose(stage, k))),
    );
    const kinds = stages.map((name) => button(name, name === stage, () => this.choose(name, launch)));
    const took = element("span", "wb-faint", {}, `compiled in ${seconds.toFixed(2)} s`);
    this.bar.replaceChildren(...(names.length > 1 ? names : []), ...kinds, took);
  }

  light(target, scroll) {
    const line = target.closest?.("[data-line]")?.dataset.line;
    if (line === undefined || line === "0") return;
    for (const box of [this.source, this.text]) {
      for (const lit of box.querySelectorAll(".wb-lit")) lit.classList.remove("wb-lit");
      const found = box.querySelectorAll(`[data-line="${line}"]`);
      for (const each of found) each.classList.add("wb-lit");
      if (scroll && found.length && !box.contains(target))
        box.scrollTop = found[0].offsetTop - box.clientHeight / 3;
    }
  }
}

function row(number, text, line) {
  const made = element("div", "wb-code-line", { "data-line": line });
  made.append(element("span", "wb-faint", {}, String(number)), element("span", "", {}, text || " "));
  return made;
}
