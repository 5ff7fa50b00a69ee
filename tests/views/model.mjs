// A widget's model as anywidget hands it to a view, kept in memory; what is saved is noted.
export class Model {
  constructor(state) {
    this.state = { live: false, follow: false, selected: null, problem: "", ...state };
    this.handlers = new Map();
    this.saved = [];
  }

  get(name) {
    return this.state[name];
  }

  /** As the kernel does when `change` comes over the wire, and as a view does. */
  set(name, value) {
    if (this.state[name] === value) return;
    this.state[name] = value;
    for (const handler of [...(this.handlers.get(`change:${name}`) ?? [])]) handler();
  }

  save_changes() {
    this.saved.push({ ...this.state });
  }

  on(names, handler) {
    for (const name of names.split(" ")) {
      this.handlers.set(name, [...(this.handlers.get(name) ?? []), handler]);
    }
  }

  off(names, handler) {
    for (const name of names.split(" ")) {
      this.handlers.set(name, (this.handlers.get(name) ?? []).filter((h) => h !== handler));
    }
  }
}
