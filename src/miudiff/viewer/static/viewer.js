// The page of a case: its panes, modes, layers, scale and address. What is clicked and typed is in controls.js.

import { listen } from "./controls.js";
import { FINEST, Lock, Pane, point } from "./panes.js";
import { formatLength, formatView, niceLength, parseView, power, tidy } from "./scale.js";

const FLAGS = ["dab", "real", "uncertainty"];
const LONGEST = 160; // screen pixels of a scale bar

const find = (selector) => document.querySelector(selector);
const findAll = (selector) => [...document.querySelectorAll(selector)];

const stage = find("#stage");
const panes = { left: new Pane(find("#left")), right: new Pane(find("#right")) };
const state = { mode: "side", flags: new Set(), curtain: 0.5, opacity: 0.5 };

const data = await load();
const { field } = data;
const sheets = Object.fromEntries(Object.entries(data.sheets).filter(([, sheet]) => !sheet.error));
const known = FLAGS.filter((flag) => flag === "dab" || sheets[flag]);
const density = () => window.devicePixelRatio || 1;
let lock = null;
let pointer = null;
let saving = 0;

await fill();
start();

async function load() {
  try {
    const answer = await fetch("data");
    if (!answer.ok) throw new Error((await answer.text()).trim());
    return await answer.json();
  } catch (error) {
    panes.left.tell(`The case cannot be loaded: ${error.message}`);
    throw error;
  }
}

async function fill() {
  const layers = [
    [panes.left, "he", "he"], [panes.left, "real", "real"], [panes.left, "real-dab", "real"],
    [panes.right, "ihc", "ihc"], [panes.right, "ihc-dab", "ihc"], [panes.right, "uncertainty", "uncertainty"],
  ];
  for (const [pane, layer, sheet] of layers) {
    if (sheets[sheet]) await pane.add(layer, sheets[sheet], `tile/${layer}`);
  }
  for (const pane of Object.values(panes)) pane.regions = pane.layers.size ? data.regions : [];
  stage.classList.toggle("both", panes.left.layers.size > 0);
  const { he, ihc, uncertainty } = data.sheets;
  if (he?.error) panes.left.tell(`No H&E: ${he.error}`);
  if (ihc?.error) panes.right.tell(`No IHC: ${ihc.error}`);
  const notes = [...data.notes, ...(uncertainty?.error ? [`No uncertainty: ${uncertainty.error}`] : [])];
  find("#notes").textContent = notes.length > 1 ? `${notes[0]} (${notes.length - 1} more: About)` : (notes[0] ?? "");
  find("#notes").title = notes.join("\n");
  find("#allnotes").replaceChildren(...notes.map((note) => Object.assign(document.createElement("li"), { textContent: note })));
}

function start() {
  const drawn = [panes.left, panes.right].filter((pane) => pane.layers.size);
  for (const button of findAll("[data-power]")) button.disabled = !field.mpp;
  for (const button of findAll("[data-toggle]")) button.hidden = !sheets[button.dataset.toggle];
  find("#overlays").hidden = !known.some((flag) => flag !== "dab");
  listen({
    setMode, toggle, zoom, magnify, setBlend,
    blend: () => (state.mode === "opacity" ? state.opacity : state.curtain),
    move: (x, y) => lock?.moveBy(x, y),
    goTo: (hash) => setView(parseView(hash, known)),
  });
  for (const pane of Object.values(panes)) watchPointer(pane);
  if (!drawn.length) return show();
  const most = Math.max(...Object.values(sheets).map((sheet) => sheet.width / sheet.share));
  const bounds = {
    finest: (FINEST * most) / density(),
    coarsest: field.mpp ? unitOf(10 / 5) : Infinity,
  };
  lock = new Lock(drawn, { ...field, ...bounds }, changed);
  const view = parseView(location.hash, known);
  adopt(view);
  show();
  halve();
  lock.resize(); // so that what fits is known
  lock.resize(view ? placeOf(view) : lock.fitted());
  new ResizeObserver(() => {
    halve();
    lock.resize();
  }).observe(stage);
  document.documentElement.dataset.ready = "yes";
}

/** Both panes get the same whole number of pixels. */
function halve() {
  stage.style.setProperty("--half", `${Math.floor((stage.clientWidth - 2) / 2)}px`);
}

// Places and scales. `unit`: screen (CSS) pixels of the field's width; a screen pixel in words and address is one of the device.

function unitOf(micrometresPerPixel) {
  return (field.width * field.mpp) / (micrometresPerPixel * density());
}

function micrometresPerPixel(unit) {
  return (field.width * field.mpp) / (unit * density());
}

function placeOf(view) {
  return { x: view.x / field.width, y: view.y / field.width, unit: (view.zoom * field.width) / density() };
}

function adopt(view) {
  if (!view) return;
  state.mode = view.mode;
  state.flags = new Set(view.flags);
}

// Showing.

function show() {
  const { mode, flags } = state;
  const dab = flags.has("dab");
  stage.dataset.mode = mode;
  const real = flags.has("real");
  panes.left.show([real ? (dab ? "real-dab" : "real") : "he"]);
  panes.right.show([dab ? "ihc-dab" : "ihc", ...(flags.has("uncertainty") ? ["uncertainty"] : [])]);
  label(panes.left, data.sheets[real ? "real" : "he"]?.label ?? "H&E", real && dab);
  label(panes.right, data.sheets.ihc?.label ?? "IHC", dab);
  press("[data-mode]", (button) => button.dataset.mode === mode);
  press("[data-layer]", (button) => (button.dataset.layer === "dab") === dab);
  press("[data-toggle]", (button) => flags.has(button.dataset.toggle));
  find("#opacity").hidden = mode !== "opacity";
  find("#curtain").hidden = mode !== "swipe";
  drawBlend();
}

function label(pane, text, dab) {
  pane.element.querySelector(".label").textContent = dab ? `${text}, DAB` : text;
  pane.element.setAttribute("aria-label", text);
}

function press(selector, pressed) {
  for (const button of findAll(selector)) button.setAttribute("aria-pressed", String(pressed(button)));
}

function drawBlend() {
  const percent = Math.round(state.curtain * 100);
  const over = state.mode === "opacity" ? state.opacity : 1;
  const [before, after] = [state.curtain * 100, 100 - state.curtain * 100];
  const clip = (inset) => (state.mode === "swipe" ? inset : "none");
  for (const part of [panes.right.view, panes.right.marks]) {
    part.style.opacity = String(over);
    part.style.clipPath = clip(`inset(0 0 0 ${before}%)`);
  }
  panes.left.marks.style.clipPath = clip(`inset(0 ${after}% 0 0)`);
  find("#curtain").style.left = `${state.curtain * 100}%`;
  find("#curtain").setAttribute("aria-valuenow", String(percent));
  find("#opacity input").value = String(Math.round(state.opacity * 100));
  find("#opacity output").textContent = `${Math.round(state.opacity * 100)} %`;
}

/** The view has moved: what tells of it is drawn again, and the address when it rests. */
function changed() {
  drawScale();
  drawPosition();
  clearTimeout(saving);
  saving = setTimeout(save, 250);
}

function drawScale() {
  const { unit } = lock.place;
  const perPixel = (field.width / unit) * (field.mpp ?? 1); // of the screen's CSS pixels, as the bar is laid out
  const length = niceLength(perPixel, LONGEST);
  for (const pane of Object.values(panes)) {
    const bar = pane.element.querySelector(".scale");
    bar.hidden = !(state.mode === "side" ? lock.panes.includes(pane) : pane === lock.panes[0]);
    bar.querySelector(".line").style.width = `${length / perPixel}px`;
    bar.querySelector(".length").textContent = field.mpp ? formatLength(length) : `${tidy(length)} px`;
  }
  const zoom = (unit * density()) / field.width;
  const told = field.mpp
    ? `${micrometresPerPixel(unit).toPrecision(3)} µm per screen pixel · ${tidy(power(micrometresPerPixel(unit)))}×`
    : `${tidy(zoom)} screen pixels to a pixel · scale unknown`;
  find("#magnification").textContent = told;
  for (const button of findAll("[data-power]")) {
    const there = field.mpp && Math.abs(power(micrometresPerPixel(unit)) / button.dataset.power - 1) < 0.005;
    button.setAttribute("aria-pressed", String(Boolean(there)));
  }
}

function drawPosition() {
  const at = pointer ? pointer.pane.viewer.viewport.pointFromPixel(point(pointer.x, pointer.y), true) : lock.place;
  const [x, y] = [at.x * field.width, at.y * field.width];
  const inside = x >= 0 && y >= 0 && x < field.width && y < field.height;
  const count = (value) => Math.floor(value).toLocaleString("en");
  const length = (value) => (value * field.mpp).toLocaleString("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
  const micrometres = field.mpp ? `x ${length(x)} µm, y ${length(y)} µm · ` : "";
  const told = inside ? `${micrometres}pixel ${count(x)}, ${count(y)}` : "outside the field";
  find("#position").textContent = `${pointer ? "Pointer" : "Centre"}: ${told}`;
}

function save() {
  const { x, y, unit } = lock.place;
  const zoom = (unit * density()) / field.width;
  const flags = known.filter((flag) => state.flags.has(flag));
  history.replaceState(null, "", formatView({ x: x * field.width, y: y * field.width, zoom, mode: state.mode, flags }));
}

// Acting.

function setMode(mode) {
  const place = lock?.place;
  state.mode = mode;
  show();
  lock?.resize(place);
}

function toggle(flag, on = !state.flags.has(flag)) {
  if (!known.includes(flag)) return;
  if (on) state.flags.add(flag);
  else state.flags.delete(flag);
  show();
  if (lock) changed();
}

function setBlend(value) {
  const share = Math.min(1, Math.max(0, value));
  if (state.mode === "opacity") state.opacity = share;
  else state.curtain = share;
  drawBlend();
}

function zoom(how) {
  if (!lock) return;
  const { unit } = lock.place;
  if (how === "fit") lock.put(lock.fitted());
  else lock.zoomTo({ in: unit * 1.5, out: unit / 1.5, one: field.width / density() }[how]);
}

function magnify(times) {
  if (lock && field.mpp) lock.zoomTo(unitOf(10 / times));
}

function setView(view) {
  if (!view || !lock) return;
  adopt(view);
  show();
  lock.resize(placeOf(view));
}

function watchPointer(pane) {
  pane.view.addEventListener("pointermove", (event) => {
    const { left, top } = pane.view.getBoundingClientRect();
    pointer = { pane, x: event.clientX - left, y: event.clientY - top };
    if (!lock?.panes.includes(pane)) {
      pointer = null;
      return;
    }
    drawPosition();
    const other = pane === panes.left ? panes.right : panes.left;
    other.cursor = null;
    pane.cursor = null;
    if (state.mode === "side") {
      const at = pane.viewer.viewport.pointFromPixel(point(pointer.x, pointer.y), true);
      other.cursor = [at.x, at.y];
    }
    other.drawMarks();
    pane.drawMarks();
  });
  pane.view.addEventListener("pointerleave", () => {
    pointer = null;
    for (const each of Object.values(panes)) {
      each.cursor = null;
      each.drawMarks();
    }
    if (lock) drawPosition();
  });
}
