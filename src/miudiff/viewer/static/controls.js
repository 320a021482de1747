// What is clicked, dragged and typed, as calls of what the page can do.

import { MODES } from "./scale.js";

const STEP = 60; // screen pixels that an arrow key moves by
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const find = (selector) => document.querySelector(selector);

/** Hear the page's controls; `page` holds setMode, toggle, zoom, magnify, blend, setBlend, move and goTo. */
export function listen(page) {
  const on = (selector, action) => {
    for (const each of document.querySelectorAll(selector)) each.addEventListener("click", () => action(each.dataset));
  };
  on("button[data-mode]", ({ mode }) => page.setMode(mode));
  on("[data-layer]", ({ layer }) => page.toggle("dab", layer === "dab"));
  on("[data-toggle]", ({ toggle }) => page.toggle(toggle));
  on("[data-zoom]", ({ zoom }) => page.zoom(zoom));
  on("[data-power]", ({ power }) => page.magnify(Number(power)));
  on("#about", () => find("#aboutbox").showModal());
  on("#help", () => find("#keysbox").showModal());
  find("#opacity input").addEventListener("input", ({ target }) => page.setBlend(target.value / 100));
  document.addEventListener("keydown", (event) => pressed(event, page));
  window.addEventListener("hashchange", () => page.goTo(location.hash));
  dragCurtain(find("#curtain"), page);
}

const KEYS = {
  1: (page) => page.setMode(MODES[0]),
  2: (page) => page.setMode(MODES[1]),
  3: (page) => page.setMode(MODES[2]),
  d: (page) => page.toggle("dab"),
  u: (page) => page.toggle("uncertainty"),
  r: (page) => page.toggle("real"),
  "+": (page) => page.zoom("in"),
  "=": (page) => page.zoom("in"),
  "-": (page) => page.zoom("out"),
  0: (page) => page.zoom("fit"),
  "[": (page) => page.setBlend(page.blend() - 0.05),
  "]": (page) => page.setBlend(page.blend() + 0.05),
  n: () => go("#following"),
  p: () => go("#previous"),
  "?": () => find("#keysbox").showModal(),
};

function pressed(event, page) {
  const shortcut = (event.ctrlKey || event.altKey || event.metaKey) && !event.getModifierState("AltGraph");
  if (shortcut || find("dialog[open]")) return;
  const arrow = ARROWS[event.key];
  const key = KEYS[event.key.toLowerCase()];
  if (arrow && event.target === find("#curtain")) page.setBlend(page.blend() + 0.02 * (arrow[0] - arrow[1]));
  else if (arrow && event.target.tagName !== "INPUT") page.move(arrow[0] * STEP, arrow[1] * STEP);
  else if (key) key(page);
  else return;
  event.preventDefault();
}

function go(selector) {
  const link = find(selector);
  if (link) location.href = link.href;
}

function dragCurtain(curtain, page) {
  curtain.addEventListener("pointerdown", (event) => curtain.setPointerCapture(event.pointerId));
  curtain.addEventListener("pointermove", (event) => {
    if (!curtain.hasPointerCapture(event.pointerId)) return;
    const { left, width } = curtain.parentElement.getBoundingClientRect();
    page.setBlend((event.clientX - left) / width);
  });
}
