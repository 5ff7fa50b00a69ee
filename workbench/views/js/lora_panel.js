// LoRAPanel in the browser: tiles, the map of rank rows, a row with buttons for each adapter.
import { css, mix, sequenceColour } from "./colours.js";
import { adapterCells, COLUMNS, loraTiles, NOBODY, ownerRuns, rowOwners } from "./lora_words.js";
import { element, mount } from "./panel.js";
import { showTiles } from "./tiles.js";

const ACTIONS = [
  ["pin", (adapter) => (adapter.pinned ? "unpin" : "pin"), () => true],
  ["evict", () => "evict", (adapter) => adapter.tier === "device" && !adapter.pinned],
  ["unload", () => "unload", (adapter) => !adapter.leaving],
];

function build(panel) {
  const { model, body } = panel;
  const send = (message) => model.send(message);
  const figures = body.appendChild(element("div", "wb-tiles"));
  const map = body.appendChild(element("div", "wb-owners", { role: "img", "aria-label": "rank rows" }));
  const form = body.appendChild(element("div", "wb-controls"));
  const name = field(panel, form, "name", "name");
  const path = field(panel, form, "path", "folder that PEFT wrote");
  const load = form.appendChild(element("button", "wb-button", { type: "button" }, "load"));
  load.setAttribute("data-lm-suppress-shortcuts", "true");
  panel.listen(load, "click", () => send({ command: "load", name: name.value, path: path.value }));
  const waits = choice(form, "unload waits for requests", true);
  const notice = body.appendChild(element("div", "wb-notice", { role: "status" }));
  const box = body.appendChild(element("div", "wb-requests"));
  const table = box.appendChild(element("table", "wb-adapters"));
  panel.listen(table, "click", (event) => {
    const { command, adapter } = event.target.dataset ?? {};
    if (command === "unload") send({ command, name: adapter, wait: waits.checked });
    else if (command) send({ command, name: adapter });
  });

  return {
    traits: ["adapters", "device", "notice"],

    draw(step, theme) {
      const [adapters, device] = [model.get("adapters"), model.get("device")];
      notice.textContent = model.get("notice");
      notice.hidden = !notice.textContent;
      if (!device.base) return "adapters: the engine has not answered yet";
      const tiles = loraTiles(adapters, device);
      showTiles(figures, tiles);
      showMap(map, adapters, device, theme);
      showTable(table, adapters);
      return tiles.map(([title, value, more]) => `${title} ${value}, ${more}`).join("; ");
    },
  };
}

function field(panel, parent, label, hint) {
  const made = parent.appendChild(element("input", "wb-policy", { type: "text", placeholder: hint }));
  made.setAttribute("aria-label", label);
  made.setAttribute("data-lm-suppress-shortcuts", "true");
  panel.listen(made, "keydown", (event) => event.stopPropagation());
  return made;
}

function choice(parent, text, checked) {
  const label = parent.appendChild(element("label", "wb-limit"));
  const box = label.appendChild(element("input", "", { type: "checkbox" }));
  box.checked = checked;
  box.setAttribute("data-lm-suppress-shortcuts", "true");
  label.append(` ${text}`);
  return box;
}

/** The device's rank rows as one bar, a colour for each adapter that owns some. */
function showMap(box, adapters, device, theme) {
  const runs = ownerRuns(rowOwners(adapters, device.num_rows));
  box.replaceChildren(
    ...runs.map(([owner, first, count]) => {
      const title = owner === NOBODY ? "free" : adapters[owner].name;
      const part = element("div", "", { title: `${title}: rows ${first} to ${first + count - 1}` });
      part.style.width = `${(100 * count) / device.num_rows}%`;
      const free = mix(theme.paper, theme.ink, 0.12);
      part.style.background = css(owner === NOBODY ? free : sequenceColour(owner));
      return part;
    }),
  );
}

/** The table is made anew only when its rows change; figures are written into it. */
function showTable(table, adapters) {
  const key = JSON.stringify(adapters.map(({ name }) => name));
  if (table.dataset.key !== key) {
    const head = element("tr", "wb-faint");
    head.append(...[...COLUMNS, ""].map((title) => element("th", "", {}, title)));
    table.replaceChildren(head, ...adapters.map(emptyRow));
    table.dataset.key = key;
  }
  adapters.forEach((adapter, place) => {
    const cells = table.rows[place + 1].cells;
    adapterCells(adapter).forEach((text, k) => {
      if (cells[k].textContent !== text) cells[k].textContent = text;
    });
    const buttons = cells[COLUMNS.length].children;
    ACTIONS.forEach(([, command, allowed], k) => {
      buttons[k].textContent = buttons[k].dataset.command = command(adapter);
      buttons[k].setAttribute("aria-label", `${command(adapter)} ${adapter.name}`);
      buttons[k].disabled = !allowed(adapter);
    });
  });
}

function emptyRow(adapter, place) {
  const row = element("tr", "");
  for (let k = 0; k < COLUMNS.length; k++) row.append(element("td", ""));
  row.cells[0].style.boxShadow = `inset 3px 0 ${css(sequenceColour(place))}`;
  const last = row.appendChild(element("td", ""));
  for (const [name] of ACTIONS) {
    const button = last.appendChild(element("button", "wb-button", { type: "button" }, name));
    button.setAttribute("data-lm-suppress-shortcuts", "true");
    button.dataset.adapter = adapter.name;
  }
  return row;
}

export default mount("lora-panel", build);
