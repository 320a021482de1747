// A thumbnail that cannot be read says why in its place.

for (const image of document.querySelectorAll(".thumb img")) {
  image.addEventListener("error", () => tell(image), { once: true });
  if (image.complete && image.naturalWidth === 0) tell(image); // it failed before this script ran
}

async function tell(image) {
  let reason = "the server does not answer";
  try {
    const answer = await fetch(image.src);
    if (answer.ok) return;
    reason = (await answer.text()).trim();
  } catch {
    // said as it stands
  }
  const said = document.createElement("span");
  said.className = "none";
  said.textContent = reason;
  image.replaceWith(said);
}
