/* Tiles in rows, of which only those near the window exist: a thousand or a million make no difference. Where the rows
   are taller than a page can be, it goes by them faster than it is scrolled; the arrows go by one. */

import { el } from "./dom.js";

const GAP = 8;
const NARROW = 600;
const AGAIN = 2000; // milliseconds
const TALLEST = 12_000_000; // pixels; browsers have a limit

/** A list of tiles. `make(item, index, count)` gives the element of one; `caption` is what a tile has below its square.
 *
 *  A source has `count`, `at(index)`, which is null for what is still on its way, and `find(id)`; `reach(index)`
 *  waits for what is on its way. */
export class Grid {
  constructor(make, { label, least = 156, leastNarrow = 104, caption = 28 }) {
    Object.assign(this, { make, least, leastNarrow, caption });
    this.element = el("ul", { class: "grid", role: "list", "aria-label": label });
    this.tiles = new Map();
    this.current = this.count = this.skipped = 0;
    this.source = listed([]);
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
    this.layout({ beyond: 0 }); // what is seen comes first
    requestAnimationFrame(() => setTimeout(() => this.draw()));
    if (!lost) return;
    if (source.count && !this.tiles.has(0)) this.element.prepend(this.tile(0)); // the window may be further down still
    this.at(0)?.focus({ preventScroll: true });
  }

  /** Draw again what was on its way. */
  refresh() {
    for (const [index, tile] of this.tiles)
      if (tile.dataset.waiting !== undefined && this.source.at(index)) this.drop(index);
    this.draw();
    const focus = document.activeElement;
    if (this.element.contains(focus) && indexOf(focus) !== this.current)
      this.at(this.current)?.focus({ preventScroll: true }); // the arrows were faster than the server
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

  layout(drawn) {
    const width = (this.width = this.element.clientWidth);
    if (!width) return;
    const least = innerWidth < NARROW ? this.leastNarrow : this.least;
    this.columns = Math.max(2, Math.floor((width + GAP) / (least + GAP)));
    this.side = (width - GAP * (this.columns - 1)) / this.columns;
    this.pitch = this.side + this.caption + GAP;
    this.count = this.source.count;
    this.rows = Math.max(0, Math.ceil(this.count / this.columns) * this.pitch - GAP); // pixels
    this.height = Math.min(TALLEST, this.rows);
    this.element.style.height = `${this.height}px`;
    for (const [index, tile] of this.tiles) this.place(tile, index);
    this.draw(drawn);
  }

  soon() {
    if (this.asked) return;
    this.asked = requestAnimationFrame(() => {
      this.asked = 0;
      this.draw();
    });
  }

  /** The tiles in the window and so many windows `beyond` it. */
  draw({ beyond = 1 } = {}) {
    if (!this.columns || !this.element.isConnected) return;
    const { above } = this;
    const skipped = this.skips(above, this.height);
    if (skipped !== this.skipped) {
      this.skipped = skipped;
      for (const [index, tile] of this.tiles) this.place(tile, index);
    }
    const top = above + skipped;
    const first = Math.max(0, Math.floor((top - beyond * innerHeight) / this.pitch)) * this.columns;
    const last = Math.min(this.count, Math.ceil((top + (1 + beyond) * innerHeight) / this.pitch) * this.columns);
    for (const [index, tile] of this.tiles)
      if ((index < first || index >= last) && !tile.contains(document.activeElement)) this.drop(index);
    const start = Math.min(...this.tiles.keys());
    const fresh = [];
    for (let index = first; index < last; index++) if (!this.tiles.has(index)) fresh.push(index);
    const made = (indices) => indices.map((index) => this.tile(index));
    this.element.prepend(...made(fresh.filter((index) => index < start))); // in the order in which they are read
    this.element.append(...made(fresh.filter((index) => index > start)));
  }

  /** How much of the grid is above the window. */
  get above() {
    return -this.element.getBoundingClientRect().top;
  }

  /** How many pixels of rows a page has no room for above the window, where `above` of `all` of its pixels are above, or
   *  of those of the rows. */
  skips(above, all) {
    const more = this.rows - this.height;
    return more && more * Math.min(1, Math.max(0, above / (all - innerHeight)));
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
    const y = Math.floor(index / this.columns) * this.pitch - this.skipped;
    const there = y < this.height ? y : -TALLEST; // what keeps the focus out of sight must not make the page taller
    tile.style.transform = `translate(${x}px, ${there}px)`;
    tile.style.width = `${this.side}px`;
    tile.style.height = `${this.side + this.caption}px`;
  }

  // -- one stop for Tab, arrows inside

  focused({ target }) {
    const index = indexOf(target);
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
    const row = Math.floor(index / this.columns) * this.pitch;
    const { above } = this;
    const top = above + this.skips(above, this.height);
    const highest = row - document.getElementById("top").offsetHeight - GAP;
    const lowest = row + this.pitch - innerHeight + GAP;
    const to = Math.min(highest, Math.max(lowest, top));
    if (to !== top) scrollBy(0, to - this.skips(to, this.rows) - above);
    this.draw();
    this.at(index)?.focus({ preventScroll: true });
  }

  /** The item that has the focus. */
  get focusedItem() {
    return this.element.contains(document.activeElement) ? this.source.at(this.current) : null;
  }
}

const indexOf = (element) => Number(element.closest("[data-index]")?.dataset.index);

/** A source over a list that is here. */
export const listed = (list) => ({
  count: list.length,
  at: (index) => list[index] ?? null,
  reach: (index) => list[index] ?? null,
  find: (id) => list.findIndex((item) => item.id === id),
});

/** A source that asks for its pages as they come into sight; `arrived` is called for each. */
export class Paged {
  constructor(load, first, size, arrived) {
    Object.assign(this, { load, size, arrived, count: first.total, pages: new Map([[0, first]]) });
  }

  at(index) {
    return this.page(index)?.items?.[index % this.size] ?? null;
  }

  async reach(index) {
    const page = this.page(index);
    await page?.coming;
    if (page?.error) throw page.error;
    return this.at(index);
  }

  page(index) {
    if (index < 0 || index >= this.count) return null;
    const number = Math.floor(index / this.size);
    if (!this.pages.has(number)) this.fetch(number);
    return this.pages.get(number);
  }

  fetch(number) {
    const page = {};
    this.pages.set(number, page);
    page.coming = this.load(number * this.size, this.size).then(
      ({ items }) => {
        page.items = items;
        this.arrived();
      },
      (error) => {
        page.error = error;
        this.pages.delete(number);
        setTimeout(() => this.arrived(), AGAIN); // asks for it again, if it is still in sight
      },
    );
  }

  find(id) {
    for (const [number, { items = [] }] of this.pages) {
      const place = items.findIndex((item) => item.id === id);
      if (place >= 0) return number * this.size + place;
    }
    return -1;
  }
}
