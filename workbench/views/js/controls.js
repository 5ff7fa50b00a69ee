// Buttons and sliders that act on a live engine, and the table of its requests.
import { element } from "./panel.js";

const MOST_TOKENS = 13; // 2 ** 13 is the end of the sliders

/** 1, 2, 4, …: what a slider's place stands for, and the place nearest to a value. */
export const valueAt = (place) => 2 ** place;
export const placeOf = (value) => Math.max(0, Math.min(MOST_TOKENS, Math.round(Math.log2(value))));

const SLIDERS = [
  ["max_batch_tokens", "tokens a step"],
  ["max_prefill_tokens", "of them prompts'"],
  ["max_sequences", "sequences"],
];

export class ControlBar {
  /** `send({command, …})` tells the kernel. */
  constructor(panel, parent, send) {
    Object.assign(this, { panel, send, sliders: {}, held: null });
    this.bar = parent.appendChild(element("div", "wb-controls"));
    this.state = this.bar.appendChild(element("span", "wb-state"));
    this.toggle = this.button("Run", () =>
      send({ command: this.running ? "pause" : "run" }),
    );
    this.button("Step", () => send({ command: "step", count: 1 }));
    this.count = this.bar.appendChild(
      element("input", "wb-count", { type: "number", min: 1, max: 100000, value: 10 }),
    );
    this.count.setAttribute("aria-label", "steps");
    this.quiet(this.count);
    this.button("steps", () => send({ command: "step", count: Number(this.count.value) }));
    for (const [name, title] of SLIDERS) this.slider(name, title);
    this.policy();
    this.notice = parent.appendChild(element("div", "wb-notice", { role: "status" }));
  }

  button(text, act) {
    const made = this.bar.appendChild(element("button", "wb-button", { type: "button" }, text));
    this.quiet(made);
    this.panel.listen(made, "click", act);
    return made;
  }

  /** Keep the notebook, and the panel's own keys, away from a control that has the focus. */
  quiet(control) {
    control.setAttribute("data-lm-suppress-shortcuts", "true");
    this.panel.listen(control, "keydown", (event) => event.stopPropagation());
  }

  slider(name, title) {
    const label = this.bar.appendChild(element("label", "wb-limit"));
    label.appendChild(element("span", "wb-faint", {}, title));
    const input = label.appendChild(
      element("input", "", { type: "range", min: 0, max: MOST_TOKENS, step: 1 }),
    );
    const value = label.appendChild(element("output", "wb-step"));
    this.quiet(input);
    this.panel.listen(input, "input", () => {
      this.held = name; // the engine's own news must not move it under the hand
      value.textContent = valueAt(Number(input.value));
    });
    this.panel.listen(input, "change", () => {
      this.held = null;
      this.send({ command: "configure", changes: { [name]: valueAt(Number(input.value)) } });
    });
    this.sliders[name] = { input, value };
  }

  policy() {
    const label = this.bar.appendChild(element("label", "wb-limit"));
    label.appendChild(element("span", "wb-faint", {}, "policy"));
    this.choice = label.appendChild(element("select", "wb-policy"));
    this.quiet(this.choice);
    this.panel.listen(this.choice, "change", () =>
      this.send({ command: "configure", changes: { policy: this.choice.value } }),
    );
  }

  show(control, notice) {
    this.notice.textContent = notice;
    this.notice.hidden = !notice;
    this.running = control.state === "running";
    this.state.textContent = control.state;
    this.state.dataset.state = control.state;
    this.toggle.textContent = this.running ? "Pause" : "Run";
    for (const part of this.bar.querySelectorAll("button, input, select"))
      part.disabled = control.state === "closed";
    for (const [name, { input, value }] of Object.entries(this.sliders)) {
      if (!control.limits || this.held === name) continue;
      input.value = placeOf(control.limits[name]);
      value.textContent = control.limits[name];
    }
    const policies = control.policies ?? [];
    if (policies.join() !== this.known) {
      this.choice.replaceChildren(...policies.map((name) => element("option", "", { value: name }, name)));
      this.known = policies.join();
    }
    if (control.limits) this.choice.value = control.limits.policy;
  }
}

export class RequestTable {
  constructor(panel, parent, send) {
    Object.assign(this, { panel, send });
    this.box = parent.appendChild(element("div", "wb-requests"));
    panel.listen(this.box, "click", (event) => {
      const name = event.target.dataset?.request;
      if (name !== undefined) send({ command: "abort", request_id: name });
    });
  }

  show(control) {
    const requests = control.requests ?? [];
    const key = JSON.stringify([requests, control.num_requests]);
    if (key === this.key) return;
    this.key = key;
    const rows = requests.map(([name, branch, state, prompt, made]) => {
      const row = element("div", "wb-request");
      const title = branch ? `${name} · ${branch}` : name;
      row.append(element("span", "wb-name", {}, title));
      const sign = row.appendChild(element("span", "wb-state", {}, state));
      sign.dataset.state = state;
      row.append(element("span", "wb-faint", {}, `${prompt} + ${made} tokens`));
      const abort = row.appendChild(element("button", "wb-button", { type: "button" }, "abort"));
      abort.setAttribute("aria-label", `abort ${name}`);
      abort.setAttribute("data-lm-suppress-shortcuts", "true");
      abort.dataset.request = name;
      return row;
    });
    const more = (control.num_requests ?? 0) - requests.length;
    if (more > 0) rows.push(element("div", "wb-faint", {}, `and ${more} more`));
    if (!rows.length && control.state) rows.push(element("div", "wb-faint", {}, "no requests"));
    const focused = document.activeElement?.dataset?.request;
    this.box.replaceChildren(...rows);
    if (focused !== undefined)
      [...this.box.querySelectorAll("button")].find((b) => b.dataset.request === focused)?.focus();
  }
}
