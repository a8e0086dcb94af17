// The part of the dashboard that changes while it trains. Every few seconds, while somebody looks, its numbers and lines
// are asked for as JSON and put in place; the part as a whole is fetched anew only when something joined or left it.
const EVERY_MS = 2000;
const part = document.querySelector("#live");

async function renew() {
  if (document.visibilityState !== "visible") return;
  const response = await fetch(`${part.dataset.address}/live`);
  if (!response.ok) return;
  const now = await response.json();
  const shown = part.querySelector("[data-shape]").dataset.shape;
  if (now.shape === shown) put(now);
  else if (!part.querySelector(":is(a, button):focus")) await redraw();   // nothing is taken from under a key
}

function put(now) {
  for (const [name, text] of Object.entries(now.texts)) {
    for (const place of part.querySelectorAll(`[data-text="${name}"]`)) write(place, text);
  }
  for (const figure of part.querySelectorAll("[data-curve]")) {
    const drawing = now.curves[figure.dataset.curve];
    if (!drawing) continue;
    figure.querySelector("polyline").setAttribute("points", drawing.line);
    figure.querySelector(".dot").setAttribute("d", drawing.dot);
    figure.querySelector("svg").setAttribute("aria-label", drawing.words);
    for (const place of figure.querySelectorAll("[data-part]")) write(place, drawing[place.dataset.part]);
  }
}

function write(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

async function redraw() {
  const response = await fetch(`${part.dataset.address}/body`);
  if (!response.ok) return;
  const open = part.querySelector("details[open]") !== null, focused = part.querySelector("summary:focus") !== null;
  part.innerHTML = await response.text();   // a template of ours: text of models is escaped in it
  const more = part.querySelector("details");
  if (more) more.open = open;
  if (more && focused) more.querySelector("summary").focus({ preventScroll: true });
}

setInterval(() => renew().catch(() => undefined), EVERY_MS);
