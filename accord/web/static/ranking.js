// A ranking of K answers: placed one after the other by key or button, or dragged. Positions count as shown, from 0.
// Leaves out sending it (label.js).

const LETTERS = "ABCDEFGHI";

export class Ranking {
  constructor(stage, say) {
    Object.assign(this, { stage, say, order: [], ties: new Set() });   // best first; tied with the one before it
    this.listenToDragging();
  }

  get answers() { return [...this.stage.querySelectorAll(".answer")]; }

  place(position) {
    if (this.order.includes(position)) {
      this.order = this.order.filter((other) => other !== position);
      this.ties.delete(position);
    } else {
      this.order.push(position);
    }
    this.draw();
  }

  toggleTie() {
    if (this.order.length < 2) { this.say("Place two answers first; then they can tie."); return; }
    if (!this.ties.delete(this.order.at(-1))) this.ties.add(this.order.at(-1));
    this.draw();
  }

  clear() {
    this.order = [];
    this.ties = new Set();
    this.draw();
  }

  // position -> rank, 1 is best; those that tie share a rank, and the next one counts them all.
  ranks() {
    const found = new Map();
    this.order.forEach((position, at) => {
      found.set(position, at && this.ties.has(position) ? found.get(this.order[at - 1]) : at + 1);
    });
    return found;
  }

  // The ranks in the order shown, and an empty slate; null where an answer is not placed yet.
  take() {
    const found = this.ranks();
    if (found.size < this.answers.length) { this.say("Place every answer first."); return null; }
    const ranks = this.answers.map((_, position) => found.get(position));
    this.order = [];
    this.ties = new Set();
    return ranks;
  }

  draw() {
    const found = this.ranks();
    for (const answer of this.answers) {
      const rank = found.get(Number(answer.dataset.position));
      answer.querySelector(".rank").textContent = rank ? `${rank}` : "\u2013";
      answer.classList.toggle("placed", Boolean(rank));
    }
    const words = this.order.map((position, at) => {
      const sign = at ? (this.ties.has(position) ? " = " : " \u203a ") : "";
      return sign + LETTERS[position];
    });
    this.stage.querySelector(".order").textContent = words.join("") || "nothing placed yet";
    this.stage.querySelector("[data-do=rank]").disabled = this.order.length < this.answers.length;
  }

  listenToDragging() {
    let dragged = null;
    this.stage.addEventListener("pointerdown", (event) => {
      dragged = event.target.closest(".handle")?.closest(".answer") || null;
      if (!dragged) return;
      event.preventDefault();
      event.target.setPointerCapture(event.pointerId);
      dragged.classList.add("dragged");
    });
    this.stage.addEventListener("pointermove", (event) => {
      if (!dragged) return;
      const under = document.elementsFromPoint(event.clientX, event.clientY);
      const over = under.find((node) => node.matches?.(".answer") && node !== dragged);
      if (!over || over.parentElement !== dragged.parentElement) return;
      const all = [...dragged.parentElement.children];
      over[all.indexOf(over) > all.indexOf(dragged) ? "after" : "before"](dragged);
    });
    const drop = () => {
      if (!dragged) return;
      dragged.classList.remove("dragged");
      this.order = this.answers.map((answer) => Number(answer.dataset.position));
      this.ties = new Set();
      dragged = null;
      this.draw();
    };
    this.stage.addEventListener("pointerup", drop);
    this.stage.addEventListener("pointercancel", drop);
  }
}
