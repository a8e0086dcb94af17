// What one browser has and another lacks, under one name: random ids, and a memory of small things that may forget.
// Leaves out answers, which must not be lost (outbox.js).

export function uuid() {
  if (crypto.randomUUID) return crypto.randomUUID();   // not on a plain http page of another host
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

// Small things that outlive the tab; a browser that keeps nothing has them as long as the page is open.
export const memory = {
  kept: new Map(),
  get(key) {
    if (this.kept.has(key)) return this.kept.get(key);
    try { return JSON.parse(localStorage.getItem(key)); } catch { return null; }
  },
  set(key, value) {
    try {
      if (value) localStorage.setItem(key, JSON.stringify(value));
      else localStorage.removeItem(key);
      this.kept.delete(key);
    } catch { this.kept.set(key, value || null); }
  },
};
