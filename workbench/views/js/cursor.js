// The step that all panels of one trace share: scrub one and all move, kernel or no kernel.

// Every widget has a module of its own, so what they share hangs on the page, by trace.
const SHARED = Symbol.for("workbench.cursors");
const SAVE_AFTER_MS = 150; // a kernel hears of the step when the hand rests, not at each tick
const ECHO_MS = 10_000; // how long the kernel may take to say our own step back to us

/** Step, bounds and playback of one trace. `follow`: stay at the newest step of a live run. */
export class Cursor {
  constructor(now = () => performance.now()) {
    this.selected = null; // a sequence id
    Object.assign(this, { first: 0, last: 0, step: 0, follow: false, playing: false, rate: 20 });
    this.listeners = new Set();
    this.sent = []; // what the kernel was told, to know its echo
    this.now = now;
  }

  /** Call `listener(cursor)` after every change; returns a function that ends it. */
  subscribe(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  changed() {
    for (const listener of [...this.listeners]) listener(this);
  }

  clamp(step) {
    return Math.max(this.first, Math.min(this.last, Math.round(step)));
  }

  /** Go to a step because a reader asked. */
  go(step) {
    this.step = this.clamp(step);
    this.follow = this.live && this.step === this.last;
    this.changed();
  }

  /** Select a sequence by its id, in every panel; null: none. */
  select(id) {
    this.selected = id;
    this.changed();
  }

  /** Take bounds that a model brought; a run that is followed goes on to its newest step. */
  grow(first, last) {
    if (first === this.first && last === this.last) return;
    this.first = first;
    this.last = last;
    this.step = this.clamp(this.follow ? last : this.step);
    this.changed();
  }

  /** Take a step, a selection or `follow` from the kernel, unless it is only an echo of what we said. */
  hear(name, value) {
    this.sent = this.sent.filter(({ when }) => this.now() - when < ECHO_MS);
    if (value === this[name] || this.sent.some((told) => told[name] === value)) return;
    this[name] = name === "step" ? this.clamp(value) : value;
    this.changed();
  }

  /** Note what the kernel is about to be told. */
  tell() {
    const { step, selected, follow } = this;
    this.sent = [...this.sent.slice(-15), { step, selected, follow, when: this.now() }];
  }

  /** Play from here, or from the start if this is the end; stops at the end. */
  play(frame = requestAnimationFrame) {
    if (this.playing) return;
    if (this.step >= this.last && !this.live) this.step = this.first;
    this.playing = true;
    let at = null;
    let due = 0;
    const tick = (time) => {
      if (!this.playing) return;
      due += at === null ? 0 : ((time - at) / 1000) * this.rate;
      at = time;
      const whole = Math.floor(due);
      due -= whole;
      if (whole) this.go(this.step + whole);
      if (this.step >= this.last) this.pause();
      else frame(tick);
    };
    this.changed();
    frame(tick);
  }

  pause() {
    this.playing = false;
    this.changed();
  }
}

/** The page's cursors by trace id: id -> {cursor, users}. */
export function cursors() {
  return (globalThis[SHARED] ??= new Map());
}

/**
 * Join the cursor of a model's trace; returns {cursor, leave}.
 *
 * Traits used: trace_id, step, selected, first_step, last_step, live, follow. The model that joined
 * first tells the kernel (in Python the panels are linked), and only what a reader did.
 */
export function join(model) {
  const id = model.get("trace_id");
  if (!id) return { cursor: new Cursor(), leave() {} }; // a panel without steps
  const entry = cursors().get(id) ?? { cursor: new Cursor(), models: [] };
  const { cursor, models } = entry;
  if (!models.length) {
    cursors().set(id, entry);
    const [first, last] = [model.get("first_step"), model.get("last_step")];
    Object.assign(cursor, { first, last, live: model.get("live"), follow: model.get("follow") });
    cursor.step = cursor.clamp(cursor.follow ? cursor.last : model.get("step"));
    cursor.selected = model.get("selected");
  } else cursor.grow(model.get("first_step"), Math.max(cursor.last, model.get("last_step")));
  models.push(model);

  const bounds = () => {
    cursor.live = model.get("live");
    cursor.grow(model.get("first_step"), model.get("last_step"));
  };
  const step = () => cursor.hear("step", model.get("step"));
  const follow = () => cursor.hear("follow", model.get("follow"));
  const selected = () => cursor.hear("selected", model.get("selected"));
  model.on("change:last_step change:first_step change:live", bounds);
  model.on("change:follow", follow);
  model.on("change:step", step);
  model.on("change:selected", selected);
  let timer = null;
  const save = () => {
    timer = null;
    if (models[0] !== model) return;
    // A busy kernel hears of it late: by then the step of one who follows is an old one, which it
    // would take for looking back.
    const names = cursor.follow ? ["follow", "selected"] : ["step", "follow", "selected"];
    if (names.every((name) => model.get(name) === cursor[name])) return;
    cursor.tell();
    for (const name of names) model.set(name, cursor[name]);
    model.save_changes();
  };
  const stop = cursor.subscribe(() => {
    clearTimeout(timer);
    if (models[0] === model) timer = setTimeout(save, SAVE_AFTER_MS);
  });
  const leave = () => {
    if (timer !== null) clearTimeout(timer), save();
    stop();
    model.off("change:last_step change:first_step change:live", bounds);
    model.off("change:follow", follow);
    model.off("change:step", step);
    model.off("change:selected", selected);
    models.splice(models.indexOf(model), 1);
    if (!models.length) {
      cursor.playing = false;
      cursors().delete(id);
    }
  };
  return { cursor, leave };
}
