// A curtain on each picture of a row uncovers the next one. Without scripts the row stands as it is, side by side.

for (const row of document.querySelectorAll(".row")) {
  const pictures = [...row.querySelectorAll("img")];
  for (const [number, next] of pictures.slice(1).entries()) hang(pictures[number], next);
}

function hang(picture, next) {
  const frame = picture.parentElement, under = next.cloneNode(), slider = document.createElement("input");
  Object.assign(under, { className: "under", alt: "" });
  Object.assign(slider, { type: "range", min: 0, max: 100, step: "any", value: 100 });
  slider.setAttribute("aria-label", `Curtain: how much is ${picture.alt}, the rest is ${next.alt}`);
  const draw = () => frame.style.setProperty("--at", `${slider.value}%`);
  const follow = (event) => {
    if (!event.buttons) return;
    const box = frame.getBoundingClientRect();
    slider.value = (100 * (event.clientX - box.left)) / box.width;
    draw();
  };
  // The slider itself is for keys: a browser's own follows the pointer with the offset of its thumb.
  slider.addEventListener("input", draw);
  slider.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -5, ArrowDown: -5, ArrowRight: 5, ArrowUp: 5 }[event.key];
    if (!by) return;
    event.preventDefault();
    slider.value = Number(slider.value) + by;
    draw();
  });
  frame.addEventListener("pointerdown", (event) => {
    frame.setPointerCapture(event.pointerId);
    follow(event);
  });
  frame.addEventListener("pointermove", follow);
  frame.addEventListener("dragstart", (event) => event.preventDefault());
  frame.classList.add("curtain");
  frame.append(under, slider);
  draw();
}
