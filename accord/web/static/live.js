// The part of the dashboard that changes while it trains: fetched anew every few seconds while somebody looks.
const EVERY_MS = 3000;
const part = document.querySelector("#live");

async function renew() {
  if (document.visibilityState !== "visible" || part.querySelector("details[open]")) return;
  const response = await fetch(part.dataset.address);
  if (response.ok) part.innerHTML = await response.text();   // a template of ours: text of models is escaped in it
}

setInterval(() => renew().catch(() => undefined), EVERY_MS);
