// Prefix lookups up to the present step, newest first: how much was found, and what ended it.
import { element } from "./panel.js";

const SHOWN = 40;

export class LookupList {
  /** chosen(lookup): what to do with a click on one. */
  constructor(parent, chosen) {
    this.box = parent.appendChild(element("div", "wb-lookups"));
    this.title = this.box.appendChild(element("div", "wb-title", {}, "prefix lookups"));
    this.list = this.box.appendChild(element("div", "wb-list"));
    this.chosen = chosen;
    this.shown = null;
  }

  draw(log) {
    const count = log.numLookups;
    const key = `${log.version}:${count}`;
    if (key !== this.shown) {
      this.shown = key;
      const total = log.lookup_row.length;
      this.title.textContent = total
        ? `prefix lookups: ${count} of ${total} up to here`
        : "prefix lookups: none in this trace";
      const newest = Array.from({ length: Math.min(SHOWN, count) }, (_, k) => count - 1 - k);
      this.list.replaceChildren(...newest.map((lookup) => this.entry(log, lookup)));
    }
    let k = 0;
    for (const entry of this.list.children)
      entry.classList.toggle("wb-now", log.lookup_row[log.numLookups - 1 - k++] === log.row);
  }

  entry(log, lookup) {
    const [found, total] = [log.lookup_tokens[lookup], log.lookup_total[lookup]];
    const step = log.about.first_step + log.lookup_row[lookup];
    const entry = element("button", "wb-lookup", { type: "button" });
    entry.setAttribute("data-lm-suppress-shortcuts", "true");
    const line = entry.appendChild(element("div", "wb-line"));
    line.appendChild(element("span", "wb-faint", {}, `step ${step}`));
    const name = log.request_ids[log.lookup_sequence[lookup]];
    line.appendChild(element("span", "wb-name", {}, name));
    const verdict = found ? `hit ${found} / ${total}` : `miss 0 / ${total}`;
    line.appendChild(element("span", found ? "wb-hit" : "wb-miss", {}, verdict));
    const bar = entry.appendChild(element("div", "wb-bar"));
    bar.appendChild(element("div", "wb-part")).style.width = `${(100 * found) / Math.max(1, total)}%`;
    entry.appendChild(element("div", "wb-reason", {}, log.lookup_reasons[lookup]));
    entry.addEventListener("click", () => this.chosen(lookup));
    return entry;
  }
}
