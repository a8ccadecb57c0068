/* The photos of a collection, or those that are like what is searched for. */

import * as api from "./api.js";
import { el, fill, problem, say } from "./dom.js";
import { Filters } from "./filters.js";
import { Grid, listed, Paged } from "./grid.js";
import { lost, QueryBar } from "./querybar.js";
import { go, isQuery, read, whereOf } from "./route.js";
import { tile } from "./tile.js";
import { View } from "./view.js";
import { count, distance, milliseconds, nameOf, several } from "./words.js";

const K = 48;
const PAGE = 120;

export class Photos extends View {
  constructor(info) {
    super();
    this.info = info;
    this.bar = new QueryBar(info, K);
    this.filters = new Filters();
    this.told = el("p", { class: "told" });
    this.notice = el("div");
    this.grid = new Grid((item) => tile(item, this.route, { pixels: this.grid.side }), { label: "Photos" });
    this.results = el(
      "section",
      { class: "results", "aria-label": "Results" },
      this.told,
      this.notice,
      this.grid.element,
    );
    this.element = el(
      "div",
      { class: "photos" },
      el("h1", { class: "unseen" }, "Photos"),
      this.bar.element,
      el("div", { class: "columns" }, this.filters.element, this.results),
    );
  }

  async update(route) {
    const signal = this.begin();
    this.route = route;
    this.bar.update(route);
    this.results.setAttribute("aria-busy", "true");
    const filters = this.filters.update(route, signal);
    try {
      const [source, told] = isQuery(route) ? await this.search(route, signal) : await this.browse(route, signal);
      if (signal.aborted) return;
      fill(this.notice, !source.count && nothing(route));
      fill(this.told, told);
      this.grid.show(source);
      await filters; // what they shift must not move what is scrolled to
    } catch (error) {
      if (signal.aborted) return;
      fill(this.told);
      fill(this.notice, error instanceof Missing ? lost(route) : problem(error, () => this.update(route)));
      this.grid.show(listed([]));
    } finally {
      if (!signal.aborted) this.results.removeAttribute("aria-busy");
    }
  }

  async search(route, signal) {
    if (lost(route)) throw new Missing();
    const { hits, ms } = await api.search(route.name, route, { k: route.k ?? K, where: whereOf(route) }, signal);
    const relevant = hits.filter((hit) => hit.relevant !== false).length;
    const cut = relevant < hits.length ? `, ${count(relevant)} within the cut-off of this collection` : "";
    say(
      hits.length
        ? `${several(hits.length, "result")}${cut}. The nearest is ${nameOf(hits[0])}, distance ${distance(hits[0].distance)}.`
        : "Nothing found.",
    );
    return [
      listed(hits),
      [
        el("b", {}, several(hits.length, "result")),
        `, nearest first${cut}`,
        el("span", { class: "soft" }, ` · ${milliseconds(ms)}`),
      ],
    ];
  }

  async browse(route, signal) {
    const where = whereOf(route);
    const load = (offset, limit) => api.items(route.name, { offset, limit, where });
    const first = await api.items(route.name, { offset: 0, limit: PAGE, where }, signal);
    const of = where && ` of ${count(this.info.items)}`;
    say(`${several(first.total, "item")}${of}`);
    return [new Paged(load, first, PAGE, () => this.grid.refresh()), [el("b", {}, several(first.total, "item")), of]];
  }

  /** The item `step` places from another, for what shows one at a time; a promise where it is not here yet. */
  beside(id, step) {
    const place = this.grid.source.find(id);
    return place < 0 ? null : this.grid.source.reach(place + step);
  }

  /** Where an item is known from already. */
  known(id) {
    return this.grid.source.at(this.grid.source.find(id));
  }

  focus() {
    this.grid.focus(this.grid.current);
  }

  close() {
    super.close();
    this.grid.close();
  }
}

class Missing extends Error {}

const nothing = (route) =>
  el(
    "div",
    { class: "notice" },
    el(
      "p",
      {},
      el("strong", {}, "Nothing is here."),
      whereOf(route) ? " The filters leave no item." : " The collection is empty: cbir add puts photos into it.",
    ),
    whereOf(route) &&
      el(
        "button",
        { type: "button", class: "button wide", onclick: () => go({ ...read(), filter: {}, where: "" }) },
        "Remove all filters",
      ),
  );
