// The playground's menus, the controls made from a tuning space, and its buttons.
import { element } from "./panel.js";

/** Keep the notebook's shortcuts away from a control that has the focus. */
function quiet(panel, control) {
  control.setAttribute("data-lm-suppress-shortcuts", "true");
  panel.listen(control, "keydown", (event) => event.stopPropagation());
  return control;
}

function menu(panel, parent, title, changed) {
  const label = parent.appendChild(element("label", "wb-limit"));
  label.append(element("span", "wb-faint", {}, title));
  const made = quiet(panel, label.appendChild(element("select", "wb-policy")));
  made.setAttribute("aria-label", title);
  panel.listen(made, "change", () => changed(made.value));
  return made;
}

/** Fill a menu with [value, text] pairs, unless it has them, and select a value. */
function fill(made, pairs, value) {
  const key = JSON.stringify(pairs);
  if (made.dataset.key !== key) {
    made.replaceChildren(...pairs.map(([v, text]) => element("option", "", { value: v }, text)));
    made.dataset.key = key;
  }
  made.value = value;
}

const same = (names) => names.map((name) => [name, name]);

export class Menus {
  constructor(panel, parent, send) {
    const bar = parent.appendChild(element("div", "wb-controls"));
    const choose = (changes) => send({ command: "choose", ...changes });
    this.source = menu(panel, bar, "show", (value) =>
      choose(value === "live" ? { kernel: this.kernel.value, case: this.cases.value } : { recorded: Number(value) }),
    );
    this.kernel = menu(panel, bar, "kernel", (kernel) => choose({ kernel }));
    this.cases = menu(panel, bar, "case", (value) => choose({ kernel: this.kernel.value, case: value }));
    this.dtype = menu(panel, bar, "dtype", (dtype) => choose({ dtype }));
    this.target = menu(panel, bar, "compile for", (target) => choose({ target }));
  }

  show({ kernels = {}, device, dtypes = [], targets = [], recorded = [] }, choice) {
    const live = choice.recorded === null || choice.recorded === undefined;
    const sweeps = recorded.map((title, k) => [String(k), title]);
    fill(this.source, [["live", `live: ${device}`], ...sweeps], live ? "live" : String(choice.recorded));
    fill(this.kernel, same(Object.keys(kernels)), choice.kernel);
    const cases = [...(kernels[choice.kernel]?.cases ?? [])];
    if (!cases.includes(choice.case)) cases.push(choice.case);
    fill(this.cases, same(cases), choice.case);
    fill(this.dtype, same(dtypes), choice.dtype);
    fill(this.target, same(targets), choice.target);
    for (const made of [this.kernel, this.cases, this.dtype]) made.disabled = !live;
  }
}

export class Knobs {
  /** `turned(config)`: a reader has moved a control. */
  constructor(panel, parent, turned) {
    Object.assign(this, { panel, turned, inputs: [], config: {} });
    this.bar = parent.appendChild(element("div", "wb-controls"));
  }

  show(axes, config) {
    const key = JSON.stringify(axes);
    if (this.key !== key) this.make(axes);
    this.key = key;
    this.config = config;
    for (const { name, values, input, output } of this.inputs) {
      const at = values.indexOf(config[name]);
      if (at >= 0) input.value = at;
      output.textContent = config[name] ?? "–";
      input.setAttribute("aria-valuetext", `${name} ${config[name]}`);
    }
  }

  make(axes) {
    this.inputs = axes.map(({ name, values }) => {
      const label = element("label", "wb-limit");
      label.append(element("span", "wb-faint", {}, name));
      const range = { type: "range", min: 0, max: values.length - 1, step: 1, "aria-label": name };
      const input = quiet(this.panel, label.appendChild(element("input", "wb-knob", range)));
      const output = label.appendChild(element("output", "wb-step"));
      input.disabled = values.length < 2;
      this.panel.listen(input, "input", () =>
        this.turned({ ...this.config, [name]: values[Number(input.value)] }),
      );
      return { name, values, input, output, label };
    });
    this.bar.replaceChildren(...this.inputs.map(({ label }) => label));
  }
}

export class Buttons {
  constructor(panel, parent, send) {
    this.bar = parent.appendChild(element("div", "wb-controls"));
    const button = (text, command) => {
      const made = this.bar.appendChild(element("button", "wb-button", { type: "button" }, text));
      panel.listen(made, "click", () => send({ command }));
      return quiet(panel, made);
    };
    this.sweep = button("Sweep the space", "sweep");
    this.cancel = button("Cancel", "cancel");
    this.pin = button("Pin for comparison", "pin");
    this.state = this.bar.appendChild(element("span", "wb-faint", { role: "status" }));
  }

  show(state, live) {
    const doing = [];
    if (state.progress) doing.push(`sweeping, ${state.progress[0]} of ${state.progress[1]}`);
    if (state.trying) doing.push(state.trying === "preparing" ? "making inputs" : `trying ${state.trying}`);
    if (state.compiling) doing.push("compiling");
    this.state.textContent = doing.join("; ");
    this.cancel.disabled = !doing.length;
    this.sweep.disabled = !live || Boolean(state.progress);
  }
}
