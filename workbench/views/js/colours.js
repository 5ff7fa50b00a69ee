// Colours that a colour-blind reader can tell apart, on JupyterLab's light and dark themes.

// Okabe and Ito's hues without black, which is the dark theme's paper. picture.py has the same.
export const HUES = [
  "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
];

/** [r, g, b], 0 to 255, of "#rrggbb" or "rgba(r, g, b, a)", laid over `under` if it is translucent. */
export function rgb(text, under = [255, 255, 255]) {
  const hex = text.match(/^#([0-9a-f]{6})$/i)?.[1];
  if (hex) return [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const [r, g, b, alpha = 1] = (text.match(/[\d.]+/g) ?? [0, 0, 0]).map(Number);
  return mix(under, [r, g, b], alpha);
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

/** Any colour that CSS knows ("white", "hsl(…)") as `rgb` reads it; null if it is none. */
function plain(text) {
  const context = document.createElement("canvas").getContext("2d");
  const read = [0, 1].map((grey) => {
    context.fillStyle = grey ? "#ffffff" : "#000000"; // what stays if the text is no colour
    context.fillStyle = text;
    return context.fillStyle;
  });
  return read[0] === read[1] ? read[0] : null;
}

/** The theme's colours at an element: {dark, paper, ink, faint, line, accent}, each [r, g, b]. */
export function themeColours(element) {
  const style = getComputedStyle(element);
  const read = (name) => plain(style.getPropertyValue(VARIABLES[name]).trim() || "none");
  const paper = read("paper");
  const dark = paper
    ? rgb(paper).reduce((sum, value) => sum + value, 0) < 384
    : matchMedia("(prefers-color-scheme: dark)").matches;
  const fallback = dark ? DARK : LIGHT;
  const colours = { dark, paper: rgb(paper ?? fallback.paper) };
  for (const name of ["ink", "faint", "line", "accent"])
    colours[name] = rgb(read(name) ?? fallback[name], colours.paper);
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
