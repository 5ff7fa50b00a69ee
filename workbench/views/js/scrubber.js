// Play, pause and a slider over the steps, by mouse and by keyboard.

const RATES = [5, 20, 100]; // steps a second

/** The controls of `panel.cursor` as an element. Keys on them and on canvases: see `keyed`. */
export function scrubber({ cursor, listen, own, root }) {
  const bar = document.createElement("div");
  bar.className = "wb-scrubber";
  const play = button(bar, "wb-play", "Play");
  const slider = bar.appendChild(document.createElement("input"));
  Object.assign(slider, { type: "range", step: 1, className: "wb-slider" });
  slider.setAttribute("aria-label", "step");
  // JupyterLab takes the arrow keys in command mode unless the focused element itself says no.
  slider.setAttribute("data-lm-suppress-shortcuts", "true");
  const label = bar.appendChild(document.createElement("output"));
  label.className = "wb-step";
  const rate = button(bar, "wb-rate", "Steps a second while playing");
  const live = button(bar, "wb-live", "Follow the newest step");
  live.textContent = "● live";

  const show = () => {
    Object.assign(slider, { min: cursor.first, max: cursor.last, value: cursor.step });
    slider.setAttribute("aria-valuetext", `step ${cursor.step} of ${cursor.last}`);
    label.textContent = `step ${cursor.step} / ${cursor.last}`;
    play.textContent = cursor.playing ? "❚❚" : "▶";
    play.setAttribute("aria-label", cursor.playing ? "Pause" : "Play");
    rate.textContent = `${cursor.rate}/s`;
    live.hidden = !cursor.live;
    live.setAttribute("aria-pressed", String(cursor.follow));
  };
  const toggle = () => (cursor.playing ? cursor.pause() : cursor.play());
  listen(play, "click", toggle);
  listen(slider, "input", () => cursor.go(Number(slider.value)));
  listen(rate, "click", () => {
    cursor.rate = RATES[(RATES.indexOf(cursor.rate) + 1) % RATES.length];
    cursor.changed();
  });
  listen(live, "click", () => cursor.go(cursor.last));
  listen(root, "keydown", (event) => keyed(event, cursor, toggle));
  own(cursor.subscribe(show));
  show();
  return bar;
}

/** Arrows go one step, with shift ten, page keys a tenth; Home and End; space plays and pauses. */
export function keyed(event, cursor, toggle) {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const onButton = event.target.tagName === "BUTTON";
  const { first, last, step } = cursor;
  const stride = event.shiftKey ? 10 : 1;
  const page = Math.max(1, Math.round((last - first) / 10));
  const goals = {
    ArrowLeft: step - stride,
    ArrowRight: step + stride,
    PageUp: step + page,
    PageDown: step - page,
    Home: first,
    End: last,
  };
  if (event.key in goals) cursor.go(goals[event.key]);
  else if (event.key === " " && !onButton) toggle();
  else return;
  event.preventDefault();
  event.stopPropagation();
}

function button(parent, className, title) {
  const made = parent.appendChild(document.createElement("button"));
  Object.assign(made, { type: "button", className, title });
  made.setAttribute("aria-label", title);
  made.setAttribute("data-lm-suppress-shortcuts", "true");
  return made;
}
