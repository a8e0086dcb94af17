// The labelling page. The server draws the order of the answers and sends each item as finished, sanitised HTML whose
// buttons say their key (data-key) and what they mean (data-send: a judgement; data-do: an action below). This module
// keeps a store of leased items, so that an answer paints the next one at once, and hands answers to the outbox.

import { memory, uuid } from "./browser.js";
import { Outbox } from "./outbox.js";
import { Ranking } from "./ranking.js";

const page = document.querySelector("#label");
const stage = document.querySelector("#stage");
const chip = document.querySelector("#unsaved");
const live = document.querySelector("#announcer");
const settings = JSON.parse(page.dataset.settings);
const readKey = `accord-guidelines-${settings.person}`;
const holder = uuid();   // this page: what it gives back when it closes is its own, not its reload's
const HEARTBEAT_MS = 30000;
const POLL_MS = 4000;

const queue = [];        // leased and not shown yet, each {lease, kind, node, expires}
const past = [];         // answered in this tab, newest last: entries with the answer's id and what it said
let current = null;      // the entry on the stage
let shownAt = 0;         // when it was painted, ms
let refilling = false;
let reachable = true;
let progress = { mine: 0, left: 0, busy: 0 };

// ---------------------------------------------------------------- the server

async function call(path, body) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "content-type": "application/json", "x-csrf-token": page.dataset.csrf },
    body: JSON.stringify(body),
  });
  if (response.ok) return response.json();
  const problem = response.status === 401 ? "you are signed out: sign in again to save" :
    response.status === 403 ? "the server refuses: reload the page" : `the server answers ${response.status}`;
  throw Object.assign(new Error(problem), { problem, status: response.status });
}

const outbox = new Outbox(
  settings.person,
  async (answers) => (await call("/api/label/answers", { answers })).results,
  ({ unsaved, problem }) => {
    chip.hidden = !unsaved;
    chip.textContent = `${unsaved} unsaved`;
    chip.title = problem || "on the way to the server";
    document.querySelector("#problem").textContent = unsaved && problem ? `${problem}; trying again` : "";
  },
  (answer, reason) => say(`An answer was not counted: ${reason}.`),
);

const ranking = new Ranking(stage, say);

async function refill() {
  if (refilling || queue.length > settings.prefetch - 5) return;
  refilling = true;
  try {
    const have = [current, ...queue].filter(Boolean).map((entry) => entry.lease);
    const got = await call("/api/label/lease", { count: settings.prefetch - queue.length, have, holder });
    reachable = true;
    for (const item of got.items) {
      if (!known(item.lease)) queue.push({ ...item, node: parse(item.html), edit: memory.get(`accord-draft-${item.lease}`), expires: performance.now() + item.seconds_left * 1000 });
    }
    got.lost.forEach(forget);
    progress = got.progress;
    if (got.guidelines !== settings.guidelines) renewGuidelines(got.guidelines);
  } catch (error) {
    reachable = false;
    if (error.status === 401) document.querySelector("#problem").textContent = error.problem;
  } finally {
    refilling = false;
  }
  if (!current) { dropExpired(); show(queue.shift() || null); }   // asks no more: an idle page looks again in a while
  drawProgress();
}

function known(lease) {
  return outbox.hasEverHad(lease) || [current, ...queue, ...past].some((entry) => entry?.lease === lease);
}

function parse(html) {
  const holder = document.createElement("template");
  holder.innerHTML = html;   // finished on the server: Markdown without HTML, then nh3
  return holder.content.firstElementChild;
}

// An item that went to somebody else while this page slept is not judged here; what was answered stays to be undone.
function forget(lease) {
  const place = queue.findIndex((entry) => entry.lease === lease && !entry.answer);
  if (place >= 0) queue.splice(place, 1);
  else if (current?.lease === lease && !current.answer && !outbox.has(lease)) {
    show(queue.shift() || null);
    say("The one before went to a colleague meanwhile.");
  }
}

// A lease that ran out while nobody looked goes back; without a connection the item is shown all the same.
function dropExpired() {
  while (queue.length && reachable && queue[0].expires < performance.now()) queue.shift();
}

// ---------------------------------------------------------------- the stage

function showNext() {
  dropExpired();
  show(queue.shift() || null);
  refill();
}

function show(entry) {
  current = entry;
  if (entry) {
    stage.replaceChildren(entry.node);
    shownAt = performance.now();
    stage.querySelector("h2")?.focus({ preventScroll: true });
    scrollTo(0, 0);
  } else {
    const empty = document.querySelector(reachable ? (progress.busy ? "#busy" : "#empty") : "#offline");
    stage.replaceChildren(empty.content.cloneNode(true));
    const mine = stage.querySelector(".mine");
    if (mine && progress.mine) mine.textContent = `You have judged ${progress.mine}: thank you. `;
  }
  page.dataset.lease = entry ? entry.lease : "";
  document.body.classList.toggle("idle", !entry);
  document.querySelector("[data-do=undo]").disabled = !past.length;
  drawProgress();
}

function drawProgress() {
  const total = progress.mine + progress.left;
  const bar = document.querySelector("#progress");
  bar.max = Math.max(1, total);
  bar.value = progress.mine;
  document.querySelector("#count").textContent = `${progress.mine} done, ${Math.max(0, progress.left)} left`;
}

function say(text) {
  live.textContent = text;
  const toast = document.querySelector("#toast");
  toast.textContent = text;
  toast.classList.remove("shown");
  void toast.offsetWidth;   // begins the fade again
  toast.classList.add("shown");
}

function answerOf(fields) {
  return {
    id: uuid(),
    lease: current.lease, guidelines: settings.guidelines || null,
    seconds: Math.round(performance.now() - shownAt) / 1000,
    answered_at: new Date().toISOString(), ...fields,
  };
}

// A judgement of the item on the stage: kept, sent, and the next item painted, all from one key press.
function submit(judgement, words) {
  if (!current) return;
  const began = performance.now();
  // A second judgement of the same lease supersedes the first; a skip is taken back before another word takes its place.
  if (current.answer && (current.said.kind === "skip" || judgement.kind === "skip")) {
    outbox.add(answerOf({ kind: "undo", action: current.answer }));
  }
  const edit = judgement.kind !== "skip" && current.edit ? { edit: current.edit.text, edit_position: current.edit.position } : {};
  const answer = answerOf({ ...judgement, ...edit });
  const entry = { ...current, answer: answer.id, said: judgement };
  memory.set(`accord-draft-${entry.lease}`, null);
  outbox.add(answer);
  past.push(entry);
  if (past.length > 50) past.shift();
  if (!current.answer) { progress.mine += 1; progress.left -= 1; }
  entry.node.querySelectorAll(".was").forEach((button) => button.classList.remove("was"));
  markSaid(entry);
  showNext();
  say(words ? `${words}.` : "Noted.");
  goOnWith(entry, judgement);
  requestAnimationFrame(() => performance.measure("answer-to-next", { start: began, end: performance.now() }));
}

function markSaid(entry) {
  for (const button of entry.node.querySelectorAll("[data-send]")) {
    button.classList.toggle("was", JSON.stringify(JSON.parse(button.dataset.send)) === JSON.stringify(entry.said));
  }
}

// Beside the judgement: a flag or a demonstration is an answer of its own and leaves the item where it is.
function addBeside(fields, words) {
  outbox.add(answerOf(fields));
  say(words);
}

// ---------------------------------------------------------------- actions, by the name in data-do

const actions = {
  undo() {
    const last = past.pop();
    if (!last) return;
    if (current) queue.unshift(current);
    show(last);
    say("Back to the answer before. Judge it again, or press Escape to leave it as it was.");
  },
  keep() {
    if (!current?.answer) return;
    past.push(current);
    showNext();
  },
  chat: () => openChat(conversation),
  "new-chat": () => openChat([]),
  ask: () => ask(document.querySelector("#chat-text").value.trim()),
  guidelines: () => open("guidelines"),
  keys: () => open("keys"),
  skip: () => current && open("skip"),
  flag: () => current && open("flag"),
  edit() {
    if (!current) return;
    const area = document.querySelector("#edit textarea");
    area.value = current.edit?.text || "";
    area.dataset.position = current.edit?.position ?? "";
    open("edit");
    area.focus();
  },
  copy(button) {
    const area = document.querySelector("#edit textarea");
    area.value = textOf(Number(button.dataset.position));
    area.dataset.position = button.dataset.position;
    area.focus();
  },
  "save-edit"() {
    const area = document.querySelector("#edit textarea");
    const text = area.value.trim();
    current.edit = text ? { text, position: area.dataset.position === "" ? null : Number(area.dataset.position) } : null;
    memory.set(`accord-draft-${current.lease}`, current.edit);
    close("edit");
    say(text ? "Your answer goes with your judgement. Now judge." : "Nothing written.");
  },
  "skip-because"(button) {
    close("skip");
    submit({ kind: "skip", reason: reasonOf(button, "skip") }, "Skipped");
  },
  "flag-because"(button) {
    const chosen = document.querySelector("#flag input[name=position]:checked");
    const position = answersOnStage().length === 1 ? 0 : chosen ? Number(chosen.value) : -1;
    if (position < 0) { say("Choose first which answer it is."); return; }
    addBeside({ kind: "flag", position, reason: reasonOf(button, "flag") }, "Flagged. Now judge the answers.");
    answersOnStage()[position].classList.add("flagged");
    close("flag");
  },
  choose(button) { button.querySelector("input").checked = true; },
  place: (button) => ranking.place(Number(button.dataset.position)),
  tie: () => ranking.toggleTie(),
  clear: () => ranking.clear(),
  rank() {
    const ranks = ranking.take();
    if (ranks) submit({ kind: "ranking", ranks }, "Ranked");
  },
  rate() { submit({ kind: "rating", rating: Number(stage.querySelector("input[type=range]").value) }, "Rated"); },
  read() {
    memory.set(readKey, settings.guidelines);
    close("guidelines");
  },
  close(button) { button.closest("dialog").close(); },
};

function reasonOf(button, dialog) {
  const own = document.querySelector(`#${dialog} input[type=text]`);
  const reason = button.dataset.reason || own.value.trim() || "other";
  own.value = "";
  return reason;
}

// ---------------------------------------------------------------- live chat: the annotator writes the prompt

let conversation = [];   // turns so far; the answer that was preferred goes on

function openChat(turns) {
  conversation = turns;
  document.querySelector("#chat .said").textContent = turns.length ? turns.at(-1).content : "";
  document.querySelector("#chat .said").hidden = !turns.length;
  open("chat");
  document.querySelector("#chat-text").focus();
}

async function ask(text) {
  if (!text) { say("Write something first."); return; }
  const messages = [...conversation, { role: "user", content: text }];
  const button = document.querySelector("#chat .main");
  button.disabled = true;
  say("The model writes two answers.");
  try {
    const item = await call("/api/label/chat", { messages });
    close("chat");
    document.querySelector("#chat-text").value = "";
    if (current) queue.unshift(current);
    show({ ...item, messages, node: parse(item.html), expires: Infinity });
  } catch (error) {
    say(error.problem || "The server cannot be reached.");
  } finally {
    button.disabled = false;
  }
}

function goOnWith(entry, judgement) {
  const preferred = { a: 0, b: 1 }[judgement.choice];
  if (!entry.messages || preferred === undefined) return;
  const content = entry.node.querySelectorAll(".answer")[preferred].dataset.text;
  openChat([...entry.messages, { role: "assistant", content }]);
}

const answersOnStage = () => [...stage.querySelectorAll(".answer")];
const textOf = (position) => answersOnStage().find((answer) => Number(answer.dataset.position) === position)?.dataset.text || "";

function open(id) {
  const dialog = document.getElementById(id);
  for (const choice of dialog.querySelectorAll("[data-for-answer]")) {
    choice.hidden = Number(choice.dataset.forAnswer) >= answersOnStage().length;
    if (choice.querySelector("input")) choice.querySelector("input").checked = false;
  }
  if (!dialog.open) dialog.showModal();
}

const close = (id) => document.getElementById(id).close();

async function renewGuidelines(version) {
  const response = await fetch("/guidelines/text");
  if (!response.ok) return;
  document.querySelector("#guidelines .text").innerHTML = await response.text();   // rendered like every other text
  settings.guidelines = version;
  open("guidelines");
}

// ---------------------------------------------------------------- keys and clicks

function press(button) {
  if (button.disabled || button.hidden) return;
  if (button.dataset.send) submit(JSON.parse(button.dataset.send), button.dataset.words);
  else actions[button.dataset.do]?.(button);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-send], [data-do]");
  if (button) press(button);
});

document.addEventListener("keydown", (event) => {
  const dialog = document.querySelector("dialog[open]");
  const typing = event.target.matches("textarea, input[type=text]");
  const enter = event.key === "Enter";
  if (event.isComposing || event.altKey || (event.repeat && !typing)) return;
  if (typing && !(enter && (event.ctrlKey || event.metaKey))) return;
  if (!typing && (event.ctrlKey || event.metaKey)) return;
  if (enter && !typing && event.target.matches("button, a, summary")) return;   // the focused one is meant
  if (event.key === "Escape" && !dialog) { actions.keep(); return; }
  const key = typing ? "save" : event.key.toLowerCase();
  const scope = dialog ? [dialog] : [stage, document.querySelector("#tools")];
  for (const place of scope) {
    const button = [...place.querySelectorAll("[data-key]")].find((one) => one.dataset.key.split(" ").includes(key) && !one.hidden);
    if (button) { event.preventDefault(); press(button); return; }
  }
});

stage.addEventListener("input", (event) => {
  if (event.target.matches("input[type=range]")) event.target.closest(".judge").querySelector("output").value = event.target.value;
});

// ---------------------------------------------------------------- the beginning and the end

addEventListener("pagehide", () => {
  // What was fetched ahead goes back at once, for a colleague who waits for it.
  const leases = [current, ...queue].filter((entry) => entry && !entry.answer).map((entry) => entry.lease);
  if (leases.length) {
    fetch("/api/label/release", {
      method: "POST", keepalive: true, body: JSON.stringify({ leases, holder }),
      headers: { "content-type": "application/json", "x-csrf-token": page.dataset.csrf },
    }).catch(() => undefined);
  }
});
addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
setInterval(refill, HEARTBEAT_MS);
setInterval(() => { if (!current) refill(); }, POLL_MS);

if (settings.guidelines && memory.get(readKey) !== settings.guidelines) open("guidelines");
await outbox.open();
await refill();
page.dataset.ready = "true";
