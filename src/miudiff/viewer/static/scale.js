// Lengths on the screen, and the view as words of the address. Nothing here knows the page.

/** The longest of 1, 2, 5 x 10^n lengths that takes at most `longest` pixels of `perPixel` each. */
export function niceLength(perPixel, longest) {
  const most = perPixel * longest;
  const power = 10 ** Math.floor(Math.log10(most));
  const step = [5, 2, 1].find((s) => s * power <= most * (1 + 1e-9));
  return step * power;
}

/** Micrometres in words: nm, µm or mm. */
export function formatLength(micrometres) {
  if (micrometres >= 1000) return `${tidy(micrometres / 1000)} mm`;
  if (micrometres < 1) return `${tidy(micrometres * 1000)} nm`;
  return `${tidy(micrometres)} µm`;
}

/** Magnification of a scale by the usual convention: 20x is 0.5 micrometres per pixel. */
export const power = (mpp) => 10 / mpp;

/** Three digits that count, with no exponent and no empty decimals. */
export function tidy(value) {
  const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value) || 1)));
  return String(Number(value.toFixed(Math.min(digits, 6))));
}

export const MODES = ["side", "swipe", "opacity"];

/** "#x,y,zoom,mode[,flags]": the centre in level-0 pixels, and how many screen pixels a level-0 pixel takes. */
export function formatView({ x, y, zoom, mode, flags }) {
  const place = [x.toFixed(1), y.toFixed(1), Number(zoom.toPrecision(6)), mode];
  return `#${[...place, ...flags].join(",")}`;
}

/** The view that an address says, or null if it says none. */
export function parseView(hash, known = []) {
  const [x, y, zoom, mode, ...flags] = hash.replace(/^#/, "").replaceAll(/%2c/gi, ",").split(",");
  const view = { x: parseFloat(x), y: parseFloat(y), zoom: parseFloat(zoom), mode };
  const numbers = [view.x, view.y, view.zoom].every(Number.isFinite) && view.zoom > 0;
  if (!numbers || !MODES.includes(mode)) return null;
  return { ...view, flags: flags.filter((flag) => known.includes(flag)) };
}
