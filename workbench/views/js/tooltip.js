// What a pointer is over, in words. Text is set as text: a prompt is never read as HTML.

/** A small table that follows the pointer; `show(event, rows)` takes [[label, text], ...]. */
export class Tooltip {
  constructor(parent) {
    this.box = parent.appendChild(document.createElement("div"));
    this.box.className = "wb-tooltip";
    this.box.setAttribute("role", "tooltip");
    this.hide();
  }

  show(event, rows) {
    this.box.replaceChildren(...rows.map(([label, text]) => line(label, text)));
    this.box.hidden = false;
    const around = this.box.offsetParent?.getBoundingClientRect() ?? { left: 0, top: 0 };
    const space = this.box.offsetParent?.clientWidth ?? innerWidth;
    const [x, y] = [event.clientX - around.left, event.clientY - around.top];
    const width = this.box.offsetWidth;
    this.box.style.left = `${x + 14 + width > space ? Math.max(0, x - width - 10) : x + 14}px`;
    this.box.style.top = `${y + 14}px`;
  }

  hide() {
    this.box.hidden = true;
  }
}

function line(label, text) {
  const row = document.createElement("div");
  const name = row.appendChild(document.createElement("span"));
  name.className = "wb-label";
  name.textContent = label;
  const value = row.appendChild(document.createElement("span"));
  value.className = label === "tokens" ? "wb-value wb-code" : "wb-value";
  value.textContent = text;
  return row;
}
