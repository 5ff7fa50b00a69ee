// What the views of a run share: loading its columns, buttons, legends, lists of requests.
import { joined, unpackColumns } from "./buffers.js";
import { css } from "./colours.js";
import { element } from "./panel.js";
import { Run } from "./run_log.js";

/** Traits of groups of columns, two each: what a view's `traits` names. */
export function groupTraits(groups) {
  return groups.flatMap((group) => [`${group}_old`, `${group}_new`]);
}

/** Read groups of columns out of a model as one `Run`; null before there is any. */
export async function loadRun(model, groups) {
  const parts = await Promise.all(
    groups.map(async (group) => {
      const [old, more] = await Promise.all(
        [`${group}_old`, `${group}_new`].map((trait) => unpackColumns(model.get(trait))),
      );
      return joined(old, more);
    }),
  );
  return parts.some((part) => !part) ? null : new Run(Object.assign({}, ...parts));
}

/** A row of controls over a view. */
export function toolbar(panel) {
  return panel.body.appendChild(element("div", "wb-toolbar"));
}

/** A button with a text and a title. */
export function textButton(panel, parent, text, title, pressed) {
  const made = parent.appendChild(element("button", "wb-button", { type: "button", title }, text));
  made.setAttribute("data-lm-suppress-shortcuts", "true");
  panel.listen(made, "click", pressed);
  return made;
}

/** Swatches with words: [[colour or null, text, shape], ...]; shape "band" or "line" is a thin one. */
export function legend(box, entries) {
  box.replaceChildren(
    ...entries.map(([colour, text, shape]) => {
      const entry = element("span", colour ? "wb-key" : "wb-key wb-key-group");
      if (!colour) {
        entry.textContent = text;
        return entry;
      }
      const swatch = entry.appendChild(element("span", `wb-patch wb-patch-${shape ?? "box"}`));
      swatch.style.background = css(colour);
      entry.append(text);
      return entry;
    }),
  );
}

/** Keep a <select> in step with names; returns the value it stands at. */
export function options(select, names, value) {
  const old = Array.from(select.options, (option) => option.textContent);
  if (old.length !== names.length || old.some((text, i) => text !== names[i])) {
    select.replaceChildren(
      ...names.map((name, i) => element("option", "", { value: String(i) }, name)),
    );
  }
  select.value = String(value);
  return value;
}
