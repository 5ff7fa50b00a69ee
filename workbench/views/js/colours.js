// Colours that a colour-blind reader can tell apart, on JupyterLab's light and dark themes.

// Okabe and Ito's hues without black, which is the dark theme's paper. picture.py has the same.
export const HUES = [
  "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
];

/** [r, g, b], 0 to 255, of "#rgb", "#rrggbb" or "rgb(r, g, b)". */
export function rgb(text) {
  const hex = text.trim().match(/^#([0-9a-f]{6}|[0-9a-f]{3})/i)?.[1];
  if (hex?.length === 3) return [...hex].map((digit) => parseInt(digit + digit, 16));
  if (hex) return [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16));
  return (text.match(/[\d.]+/g) ?? [0, 0, 0]).slice(0, 3).map(Number);
}

/** Between two colours: 0 gives `a`, 1 gives `b`. */
export function mix(a, b, share) {
  return a.map((value, i) => Math.round(value + (b[i] - value) * share));
}

/** Colour as one pixel of an ImageData that is written through a Uint32Array (little-endian). */
export function pixel([r, g, b]) {
  return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
}

/** [r, g, b] of the n-th sequence; after seven hues they come again lighter, then darker. */
export function sequenceColour(n) {
  const hue = rgb(HUES[n % HUES.length]);
  const tier = Math.floor(n / HUES.length) % 3;
  return tier === 0 ? hue : mix(hue, tier === 1 ? [255, 255, 255] : [0, 0, 0], 0.35);
}

const LIGHT = { paper: "#ffffff", ink: "#1f1f1f", faint: "#616161", line: "#e0e0e0", accent: "#1976d2" };
const DARK = { paper: "#111111", ink: "#e8e8e8", faint: "#a8a8a8", line: "#424242", accent: "#64b5f6" };
const VARIABLES = {
  paper: "--jp-layout-color1",
  ink: "--jp-content-font-color1",
  faint: "--jp-content-font-color2",
  line: "--jp-border-color2",
  accent: "--jp-brand-color1",
};

/** The theme's colours at an element: {dark, paper, ink, faint, line, accent}, each [r, g, b]. */
export function themeColours(element) {
  // The browser resolves what a theme may write: names, hex, a share of black. Unset is transparent.
  const probe = element.appendChild(document.createElement("span"));
  const declared = {};
  for (const [name, variable] of Object.entries(VARIABLES)) {
    probe.style.color = `var(${variable}, transparent)`;
    declared[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  return themed(declared, matchMedia("(prefers-color-scheme: dark)").matches);
}

/** Colours as computed styles name them, laid over their paper; `dark`: what to take for unset ones. */
export function themed(declared, dark) {
  const numbers = (text) => (text.match(/[\d.]+/g) ?? []).map(Number);
  const [r, g, b, opacity = 1] = numbers(declared.paper);
  if (opacity) dark = r + g + b < 384;
  const fallback = dark ? DARK : LIGHT;
  const paper = opacity ? [r, g, b] : rgb(fallback.paper);
  const colours = { dark, paper };
  for (const name of Object.keys(VARIABLES)) {
    if (name === "paper") continue;
    const [red, green, blue, alpha = 1] = numbers(declared[name]);
    colours[name] = alpha ? mix(paper, [red, green, blue], alpha) : rgb(fallback[name]);
  }
  return colours;
}

/** Call `changed` whenever the theme does; returns a function that stops it. */
export function onTheme(changed) {
  const observer = new MutationObserver(changed);
  const attributeFilter = ["data-jp-theme-name", "data-jp-theme-light", "data-vscode-theme-kind"];
  observer.observe(document.body, { attributes: true, attributeFilter });
  const media = matchMedia("(prefers-color-scheme: dark)");
  media.addEventListener("change", changed);
  return () => {
    observer.disconnect();
    media.removeEventListener("change", changed);
  };
}

/** A colour as CSS writes it. */
export function css([r, g, b], alpha = 1) {
  return `rgba(${r}, ${g}, ${b}, ${alpha})`;
}
