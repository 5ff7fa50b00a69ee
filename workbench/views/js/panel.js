// The frame around every view: canvas, scrubber, tooltip, theme, errors, and leaving no trace.
import { onTheme, themeColours } from "./colours.js";
import { scrubber } from "./scrubber.js";
import { join } from "./cursor.js";
import { Tooltip } from "./tooltip.js";

const MOST_UNSEEN = 120; // frames; after them it is hidden, and its size will change when it is not

/** Run `draw` at most once a frame, however often it is asked for; `ask.cancel()` forgets it. */
export function perFrame(draw, request = requestAnimationFrame, cancel = cancelAnimationFrame) {
  let pending = 0;
  const ask = () => {
    pending ||= request(() => {
      pending = 0;
      draw();
    });
  };
  ask.cancel = () => {
    cancel(pending);
    pending = 0;
  };
  return ask;
}

/** An element with a class and attributes; `text` is set as text. */
export function element(tag, className, attributes = {}, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

/** A canvas that a keyboard can reach, sized in CSS pixels by its style; `fit()` before drawing. */
export function canvas(parent, className) {
  const made = parent.appendChild(element("canvas", className, { role: "img", tabindex: "0" }));
  made.setAttribute("data-lm-suppress-shortcuts", "true");
  const context = made.getContext("2d");
  /** Match the bitmap to the screen; returns the size in CSS pixels, which drawing then uses. */
  const fit = () => {
    const [width, height] = [made.clientWidth, made.clientHeight];
    const scale = globalThis.devicePixelRatio || 1;
    const wanted = [Math.round(width * scale), Math.round(height * scale)];
    if (made.width !== wanted[0]) made.width = wanted[0];
    if (made.height !== wanted[1]) made.height = wanted[1];
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    return { width, height };
  };
  return { canvas: made, context, fit };
}

/**
 * Make a view of `build`; a view's ESM ends with `export default mount("kv-cache", build)`.
 *
 * build(panel) adds elements to `panel.body` and returns {load, draw, traits}: `load()` (may be
 * async) reads `panel.model` at the start and when one of `traits` changes; `draw(step, colours)`
 * draws a step and returns one sentence on it, which screen readers get. `panel`: model, body,
 * cursor, tooltip, ask() for a new drawing, own(f) for what to do at the end, listen(target,
 * name, handler) for listeners that go with the panel.
 */
export function mount(name, build) {
  const render = ({ model, el }) => {
    const panel = open(model, el, name);
    let failed = false;
    const fail = (error) => {
      failed = true;
      console.error(error);
      panel.problem(`${name}: ${error?.message ?? error}`);
    };
    let [ready, colours, view] = [false, null, null];
    let unseen = 0; // frames in a row in which there was nothing to draw on
    const draw = () => {
      if (!ready || !panel.root.isConnected) return;
      // While JupyterLab loads a theme its layout is gone, for no longer than observers can see.
      if (!panel.root.clientWidth) return void (unseen++ < MOST_UNSEEN && panel.ask());
      unseen = 0;
      try {
        const step = panel.cursor.step;
        colours ??= themeColours(panel.root);
        panel.say(view.draw(step, colours));
        if (failed) panel.problem(model.get("problem"));
        failed = false;
        panel.root.dataset.step = step;
        panel.root.dispatchEvent(new CustomEvent("workbench:drawn", { detail: { step } }));
      } catch (error) {
        fail(error);
      }
    };
    panel.ask = perFrame(draw);
    let loads = 0;
    const load = async () => {
      const mine = ++loads;
      try {
        await view.load?.(() => mine === loads); // asks whether it is still the newest
        if (mine !== loads) return;
        ready = true;
        panel.ask();
      } catch (error) {
        fail(error);
      }
    };
    try {
      view = build(panel);
      for (const trait of view.traits ?? []) panel.hear(`change:${trait}`, load);
      panel.own(panel.cursor.subscribe(panel.ask));
      panel.own(onTheme(() => ((colours = null), panel.ask())));
      const resized = new ResizeObserver(panel.ask); // also when a notebook attaches it again
      resized.observe(panel.root);
      panel.own(() => (resized.disconnect(), panel.ask.cancel()));
      load();
    } catch (error) {
      fail(error);
    }
    return panel.close;
  };
  return { render };
}

function open(model, el, name) {
  const root = el.appendChild(element("div", `wb-view wb-${name}`));
  const error = root.appendChild(element("div", "wb-problem", { role: "alert" }));
  const body = root.appendChild(element("div", "wb-body"));
  const spoken = root.appendChild(element("div", "wb-spoken", { "aria-live": "polite" }));
  const endings = [];
  const own = (ending) => endings.push(ending);
  const { cursor, leave } = join(model);
  own(leave);
  const listen = (target, event, handler, options) => {
    target.addEventListener(event, handler, options);
    own(() => target.removeEventListener(event, handler, options));
  };
  const hear = (event, handler) => {
    model.on(event, handler);
    own(() => model.off(event, handler));
  };
  const problem = (text) => {
    error.textContent = text;
    error.hidden = !text;
  };
  const reported = () => problem(model.get("problem"));
  hear("change:problem", reported);
  reported();
  const tooltip = new Tooltip(root);
  const panel = { model, root, body, cursor, tooltip, own, listen, hear, problem };
  if (model.get("trace_id")) root.insertBefore(scrubber(panel), spoken);
  let telling = null;
  own(() => clearTimeout(telling));
  panel.say = (sentence) => {
    for (const drawn of body.querySelectorAll("canvas")) drawn.setAttribute("aria-label", sentence);
    clearTimeout(telling); // not at each step of a drag
    telling = setTimeout(() => (spoken.textContent = sentence), 500);
  };
  panel.close = () => {
    for (const ending of endings.splice(0).reverse()) ending();
    root.remove();
  };
  return panel;
}
