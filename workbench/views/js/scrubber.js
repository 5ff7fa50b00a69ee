// Play, pause and a slider over the steps, by mouse and by keyboard.

const RATES = [5, 20, 100]; // steps a second

/** The controls of `panel.timeline` as an element. Keys on them and on canvases: see `keyed`. */
export function scrubber({ timeline, listen, own, root }) {
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
    Object.assign(slider, { min: timeline.first, max: timeline.last, value: timeline.step });
    slider.setAttribute("aria-valuetext", `step ${timeline.step} of ${timeline.last}`);
    label.textContent = `step ${timeline.step} / ${timeline.last}`;
    play.textContent = timeline.playing ? "❚❚" : "▶";
    play.setAttribute("aria-label", timeline.playing ? "Pause" : "Play");
    rate.textContent = `${timeline.rate}/s`;
    live.hidden = !timeline.live;
    live.setAttribute("aria-pressed", String(timeline.follow));
  };
  const toggle = () => (timeline.playing ? timeline.pause() : timeline.play());
  listen(play, "click", toggle);
  listen(slider, "input", () => timeline.go(Number(slider.value)));
  listen(rate, "click", () => {
    timeline.rate = RATES[(RATES.indexOf(timeline.rate) + 1) % RATES.length];
    timeline.changed();
  });
  listen(live, "click", () => timeline.go(timeline.last));
  listen(root, "keydown", (event) => keyed(event, timeline, toggle));
  own(timeline.subscribe(show));
  show();
  return bar;
}

/** Arrows go one step, with shift ten, page keys a tenth; Home and End; space plays and pauses. */
export function keyed(event, timeline, toggle) {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const onButton = event.target.tagName === "BUTTON";
  const { first, last, step } = timeline;
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
  if (event.key in goals) timeline.go(goals[event.key]);
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
