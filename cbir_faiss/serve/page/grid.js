/* Tiles in rows, of which only those near the window exist: a thousand or a hundred thousand make no difference. */

import { el } from "./dom.js";

const GAP = 8;
const NARROW = 600;
const AGAIN = 2000; // milliseconds
const TALLEST = 12_000_000; // pixels; browsers have a limit

/** A list of tiles. `make(item, index, count)` gives the element of one; `caption` is what a tile has below its square.
 *
 *  A source has `count`, `at(index)`, which is null for what is still on its way, and `find(id)`. */
export class Grid {
  constructor(make, { label, least = 156, leastNarrow = 104, caption = 28 }) {
    Object.assign(this, { make, least, leastNarrow, caption });
    this.element = el("ul", { class: "grid", role: "list", "aria-label": label });
    this.tiles = new Map();
    this.current = this.count = 0;
    this.source = { count: 0, at: () => null, find: () => -1 };
    this.gone = new AbortController();
    const { signal } = this.gone;
    addEventListener("scroll", () => this.soon(), { signal, passive: true });
    this.watch = new ResizeObserver(() => this.element.clientWidth !== this.width && this.layout());
    this.watch.observe(this.element);
    this.element.addEventListener("keydown", (event) => this.key(event));
    this.element.addEventListener("focusin", (event) => this.focused(event));
  }

  show(source) {
    const focus = document.activeElement;
    const lost = this.shown && (focus === document.body || this.element.contains(focus)); // it was on what goes now
    this.source = source;
    this.current = 0;
    this.shown = true;
    this.clear();
    this.layout();
    if (lost) this.at(0)?.focus({ preventScroll: true });
  }

  /** Draw again what was on its way. */
  refresh() {
    for (const [index, tile] of this.tiles)
      if (tile.dataset.waiting !== undefined && this.source.at(index)) this.drop(index);
    this.draw();
  }

  close() {
    this.gone.abort();
    this.watch.disconnect();
  }

  clear() {
    this.tiles.clear();
    this.element.replaceChildren();
  }

  drop(index) {
    this.tiles.get(index).remove();
    this.tiles.delete(index);
  }

  layout() {
    const width = (this.width = this.element.clientWidth);
    if (!width) return;
    const least = innerWidth < NARROW ? this.leastNarrow : this.least;
    this.columns = Math.max(2, Math.floor((width + GAP) / (least + GAP)));
    this.side = (width - GAP * (this.columns - 1)) / this.columns;
    this.pitch = this.side + this.caption + GAP;
    this.count = Math.min(this.source.count, Math.floor(TALLEST / this.pitch) * this.columns);
    const rows = Math.ceil(this.count / this.columns);
    this.element.style.height = `${Math.max(0, rows * this.pitch - GAP)}px`;
    for (const [index, tile] of this.tiles) this.place(tile, index);
    this.draw();
  }

  soon() {
    if (this.asked) return;
    this.asked = requestAnimationFrame(() => {
      this.asked = 0;
      this.draw();
    });
  }

  draw() {
    if (!this.columns || !this.element.isConnected) return;
    const top = -this.element.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor((top - innerHeight) / this.pitch)) * this.columns;
    const last = Math.min(this.count, Math.ceil((top + 2 * innerHeight) / this.pitch) * this.columns);
    for (const [index, tile] of this.tiles)
      if ((index < first || index >= last) && !tile.contains(document.activeElement)) this.drop(index);
    const start = Math.min(...this.tiles.keys());
    const fresh = [];
    for (let index = first; index < last; index++) if (!this.tiles.has(index)) fresh.push(index);
    const made = (indices) => indices.map((index) => this.tile(index));
    this.element.prepend(...made(fresh.filter((index) => index < start))); // in the order in which they are read
    this.element.append(...made(fresh.filter((index) => index > start)));
  }

  tile(index) {
    const item = this.source.at(index);
    const tile = item ? this.make(item, index, this.source.count) : el("li", { class: "tile", "data-waiting": "" });
    tile.setAttribute("aria-posinset", index + 1);
    tile.setAttribute("aria-setsize", this.source.count);
    tile.dataset.index = index;
    this.place(tile, index);
    const handle = tile.querySelector(".photo");
    if (handle) handle.tabIndex = index === this.current ? 0 : -1;
    this.tiles.set(index, tile);
    return tile;
  }

  place(tile, index) {
    const x = (index % this.columns) * (this.side + GAP);
    const y = Math.floor(index / this.columns) * this.pitch;
    tile.style.transform = `translate(${x}px, ${y}px)`;
    tile.style.width = `${this.side}px`;
    tile.style.height = `${this.side + this.caption}px`;
  }

  // -- one stop for Tab, arrows inside

  focused({ target }) {
    const index = Number(target.closest("[data-index]")?.dataset.index);
    if (Number.isInteger(index)) this.at(index);
  }

  at(index) {
    const before = this.tiles.get(this.current)?.querySelector(".photo");
    if (before) before.tabIndex = -1;
    this.current = index;
    const handle = this.tiles.get(index)?.querySelector(".photo");
    if (handle) handle.tabIndex = 0;
    return handle;
  }

  key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || !event.target.classList.contains("photo")) return;
    const page = this.columns * Math.max(1, Math.floor(innerHeight / this.pitch));
    const last = this.count - 1;
    const to = {
      ArrowLeft: this.current - 1,
      ArrowRight: this.current + 1,
      ArrowUp: this.current - this.columns,
      ArrowDown: this.current + this.columns,
      PageUp: this.current - page,
      PageDown: this.current + page,
      Home: 0,
      End: last,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.focus(Math.min(last, Math.max(0, to)));
  }

  /** The tile with `index`, in the window and with the focus. */
  focus(index) {
    const top = this.element.getBoundingClientRect().top + scrollY + Math.floor(index / this.columns) * this.pitch;
    const above = document.getElementById("top").offsetHeight + GAP;
    if (top < scrollY + above) scrollTo(0, top - above);
    else if (top + this.pitch > scrollY + innerHeight) scrollTo(0, top + this.pitch - innerHeight + GAP);
    this.draw();
    this.at(index)?.focus({ preventScroll: true });
  }

  /** The item that has the focus. */
  get focusedItem() {
    return this.element.contains(document.activeElement) ? this.source.at(this.current) : null;
  }
}

/** A source over a list that is here. */
export const listed = (list) => ({
  count: list.length,
  at: (index) => list[index] ?? null,
  find: (id) => list.findIndex((item) => item.id === id),
});

/** A source that asks for its pages as they come into sight; `arrived` is called for each. */
export class Paged {
  constructor(load, first, size, arrived) {
    Object.assign(this, { load, size, arrived, count: first.total, pages: new Map([[0, first.items]]) });
  }

  at(index) {
    if (index < 0 || index >= this.count) return null;
    const number = Math.floor(index / this.size);
    const page = this.pages.get(number);
    if (page === undefined) this.fetch(number);
    return page?.[index % this.size] ?? null;
  }

  async fetch(number) {
    this.pages.set(number, null);
    try {
      this.pages.set(number, (await this.load(number * this.size, this.size)).items);
      this.arrived();
    } catch {
      this.pages.delete(number);
      setTimeout(() => this.arrived(), AGAIN); // asks for it again, if it is still in sight
    }
  }

  find(id) {
    for (const [number, page] of this.pages) {
      const place = page?.findIndex((item) => item.id === id) ?? -1;
      if (place >= 0) return number * this.size + place;
    }
    return -1;
  }
}
