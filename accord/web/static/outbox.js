// Answers that must not be lost: each goes into IndexedDB first, then to the server, again and again until the server
// says that it is committed. An answer has an id of its own, so that sending it twice stores it once.
// Leaves out what an answer says (label.js).

const BATCH = 20;
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 15000;

export class Outbox {
  // `post(answers)` -> [{id, stored, reason}], throws where the server could not be reached or would not listen.
  // `changed(state)` hears {unsaved, problem}; `refused(answer, reason)` hears of an answer that the server will never take.
  constructor(person, post, changed, refused) {
    Object.assign(this, { person, post, changed, refused });
    this.waiting = new Map();   // id -> answer, all that is not acknowledged
    this.leases = new Set();    // of every answer that was ever in `waiting`
    this.problem = "";
    this.waitMs = FIRST_WAIT_MS;
    this.timer = 0;
    this.sending = false;
    this.database = null;
  }

  // Reads what an earlier tab left behind, and begins to send it.
  async open() {
    this.database = await openDatabase();
    await this.readWaiting();
    addEventListener("online", () => this.hurry());
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && this.hurry());
    addEventListener("beforeunload", (event) => { if (this.waiting.size && !this.database) event.preventDefault(); });
    this.hurry();
  }

  async readWaiting() {
    const kept = await readAll(this.database);
    for (const answer of kept.sort((a, b) => a.order - b.order)) {
      if (answer.person === this.person) this.hold(answer);
    }
    this.tell();
  }

  // Keeps an answer, then sends it. The caller need not wait: the write begins before this returns.
  add(answer) {
    const kept = { ...answer, person: this.person, order: performance.timeOrigin + performance.now() };
    this.hold(kept);
    this.tell();
    return write(this.database, (store) => store.put(kept)).then(() => this.hurry(), (error) => {
      this.problem = `this browser cannot keep answers (${error.name}); do not close the page`;
      this.hurry();
    });
  }

  hold(answer) {
    this.waiting.set(answer.id, answer);
    this.leases.add(answer.lease);
  }

  has(lease) { return [...this.waiting.values()].some((answer) => answer.lease === lease); }

  // Acknowledged answers too: a list of items that set out before an answer arrived still names its lease.
  hasEverHad(lease) { return this.leases.has(lease); }

  tell() { this.changed({ unsaved: this.waiting.size, problem: this.problem }); }

  hurry() {
    this.waitMs = FIRST_WAIT_MS;
    clearTimeout(this.timer);
    this.send();
  }

  async send() {
    if (this.sending || !this.waiting.size) return;
    this.sending = true;
    try {
      // One tab sends at a time. A second sender would do no harm, the server knows each answer by its id.
      if (navigator.locks) await navigator.locks.request(`accord-outbox-${this.person}`, () => this.sendBatch());
      else await this.sendBatch();
      this.problem = "";
      this.waitMs = FIRST_WAIT_MS;
    } catch (error) {
      this.problem = error.problem || "the server cannot be reached";
      this.timer = setTimeout(() => this.send(), this.waitMs * (0.75 + Math.random() / 2));
      this.waitMs = Math.min(LONGEST_WAIT_MS, 2 * this.waitMs);
    } finally {
      this.sending = false;
      this.tell();
    }
    if (this.waiting.size && !this.problem) this.send();
  }

  async sendBatch() {
    const batch = [...this.waiting.values()].slice(0, BATCH);
    const results = new Map((await this.post(batch)).map((result) => [result.id, result]));
    for (const answer of batch) {
      const result = results.get(answer.id);
      if (!result) continue;   // not spoken of: stays, and is sent again
      if (this.database) await write(this.database, (store) => store.delete(answer.id));
      this.waiting.delete(answer.id);
      if (!result.stored) this.refused(answer, result.reason);
    }
  }
}

function openDatabase() {
  return new Promise((resolve) => {
    const request = indexedDB.open("accord", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("answers", { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => resolve(null);   // a private window of some browsers: answers live in memory, and the chip says so
  });
}

// One transaction, flushed to disk before it counts as done.
function write(database, change) {
  return new Promise((resolve, reject) => {
    if (!database) { reject(new DOMException("no database", "NotSupportedError")); return; }
    const transaction = database.transaction("answers", "readwrite", { durability: "strict" });
    transaction.oncomplete = () => resolve();
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
    change(transaction.objectStore("answers"));
  });
}

function readAll(database) {
  return new Promise((resolve) => {
    if (!database) { resolve([]); return; }
    const request = database.transaction("answers").objectStore("answers").getAll();
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => resolve([]);
  });
}
