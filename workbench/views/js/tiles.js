// A row of figures: name, value, and what there is to say beside it.
import { element } from "./panel.js";

/** Put [[name, value, more], …] into tiles that are there already, so that fast updates do not flicker. */
export function showTiles(box, rows) {
  if (box.childElementCount !== rows.length)
    box.replaceChildren(
      ...rows.map(() => {
        const tile = element("div", "wb-tile");
        for (const part of ["wb-faint", "wb-figure", "wb-faint"]) tile.append(element("div", part));
        return tile;
      }),
    );
  rows.forEach((texts, k) =>
    texts.forEach((text, part) => {
      const place = box.children[k].children[part];
      if (place.textContent !== text) place.textContent = text;
    }),
  );
}
