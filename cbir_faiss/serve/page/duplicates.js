/* Pictures that are there more than once: exact copies, and apart from them what only looks alike. */

import * as api from "./api.js";
import { button, el, fill, problem, say } from "./dom.js";
import { removeItems } from "./lightbox.js";
import { go } from "./route.js";
import { tile } from "./tile.js";
import { View } from "./view.js";
import { count, several } from "./words.js";

const AT_ONCE = 40; // groups

export class Duplicates extends View {
  constructor(info) {
    super();
    this.info = info;
    this.chosen = new Set();
    this.controls = el("div", { class: "controls" });
    this.groups = el("div");
    this.bar = el("div", { class: "selection", hidden: true });
    this.element = el("div", { class: "duplicates" }, el("h1", {}, "Duplicates"), this.controls, this.groups, this.bar);
    this.watch = new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && this.more(), {
      rootMargin: "800px",
    });
  }

  async update(route) {
    const signal = this.begin();
    this.route = route;
    this.chosen.clear();
    this.selection();
    fill(
      this.controls,
      this.info.bits
        ? radiusOf(route, this.info.bits)
        : el(
            "p",
            { class: "soft" },
            "The collection holds floats, so only exact copies are found: look-alikes need binary codes.",
          ),
    );
    this.groups.setAttribute("aria-busy", "true");
    if (!this.groups.firstChild) fill(this.groups, el("p", { class: "soft wait" }, "Looking through every item…"));
    try {
      this.found = await api.duplicates(route.name, route.radius, signal);
      if (!signal.aborted) this.show();
    } catch (error) {
      if (!signal.aborted)
        fill(
          this.groups,
          problem(error, () => this.update(route)),
        );
    } finally {
      if (!signal.aborted) this.groups.removeAttribute("aria-busy");
    }
  }

  show() {
    const { exact, alike } = this.found;
    this.lists = [
      ["Exact copies", "The same bytes, found more than once.", exact, () => "same bytes"],
      [
        "Look-alikes",
        "Their codes differ in a few bits. Distances are to the first of each group.",
        alike,
        (item, i) => (i ? several(item.distance, "bit") : "first"),
      ],
    ]
      .filter(([, , groups]) => groups.length)
      .map(([title, words, groups, note]) => ({
        title,
        words,
        groups,
        note,
        shown: 0,
        host: el("div", { class: "groups" }),
      }));
    this.end = el("div", { class: "end" });
    fill(
      this.groups,
      this.lists.map(({ title, words, groups, host }) =>
        el(
          "section",
          { "aria-label": title },
          el(
            "h2",
            {},
            title,
            " ",
            el("span", { class: "soft" }, `${several(groups.length, "group")}, ${count(groups.flat().length)} items`),
          ),
          el("p", { class: "soft" }, words),
          host,
        ),
      ),
      !this.lists.length &&
        el(
          "p",
          { class: "notice" },
          el("strong", {}, "Every picture is there once."),
          this.info.bits ? " A wider radius finds what is less alike." : "",
        ),
      this.end,
    );
    const listed = exact.length + alike.length;
    if (this.found.total > listed)
      this.controls.append(
        el("span", { class: "soft" }, `The first ${count(listed)} of ${count(this.found.total)} groups are listed.`),
      );
    say(`${several(exact.length, "group")} of exact copies, ${several(alike.length, "group")} of look-alikes`);
    this.watch.disconnect();
    this.more();
    this.watch.observe(this.end);
  }

  /** The next groups, when the end of what is shown comes near. */
  more() {
    const list = this.lists.find(({ shown, groups }) => shown < groups.length);
    if (!list) return this.watch.disconnect();
    const next = list.groups.slice(list.shown, list.shown + AT_ONCE);
    list.host.append(...next.map((group) => this.group(group, list.note)));
    list.shown += next.length;
    if (this.end.getBoundingClientRect().top < innerHeight + 800) this.more();
  }

  group(group, note) {
    const others = group.slice(1).map(({ id }) => id);
    const tiles = group.map((item, i) =>
      tile(item, this.route, { pixels: 128, far: note(item, i), beside: this.info.write && this.box(item) }),
    );
    return el(
      "div",
      { class: "group" },
      el("ul", { class: "strip", role: "list", "aria-label": several(group.length, "picture") }, tiles),
      this.info.write &&
        button(null, "Select all but the first", () => this.select(others), { wide: true, class: "quiet" }),
    );
  }

  box({ id, path }) {
    return el("input", {
      type: "checkbox",
      class: "pick",
      value: id,
      "aria-label": `Select ${path || id}`,
      onchange: (event) => (event.target.checked ? this.chosen.add(id) : this.chosen.delete(id), this.selection()),
    });
  }

  select(ids) {
    for (const id of ids) this.chosen.add(id);
    for (const box of this.groups.querySelectorAll(".pick")) box.checked = this.chosen.has(Number(box.value));
    this.selection();
  }

  selection() {
    const ids = [...this.chosen];
    this.bar.hidden = !ids.length;
    if (!ids.length) return;
    const clear = () => {
      this.chosen.clear();
      this.select([]);
    };
    fill(
      this.bar,
      el("b", {}, `${count(ids.length)} selected`),
      button("trash", "Remove from the collection…", () => removeItems(this.route.name, ids, () => {}), {
        wide: true,
        class: "danger",
        "data-key": "remove",
      }),
      button(null, "Select none", clear, { wide: true, class: "quiet", "data-key": "none" }),
    );
  }

  known(id) {
    return [...(this.found?.exact ?? []), ...(this.found?.alike ?? [])].flat().find((item) => item.id === id);
  }

  beside(id, step) {
    const list =
      [...(this.found?.exact ?? []), ...(this.found?.alike ?? [])].find((group) =>
        group.some((item) => item.id === id),
      ) ?? [];
    return list[list.findIndex((item) => item.id === id) + step];
  }

  close() {
    super.close();
    this.watch.disconnect();
  }
}

function radiusOf(route, bits) {
  const initial = Math.floor(bits / 32);
  const most = Math.floor(bits / 4);
  return el(
    "form",
    { onsubmit: (event) => event.preventDefault() },
    el(
      "label",
      { class: "choice" },
      "Alike within ",
      el("input", {
        type: "number",
        min: 0,
        max: most,
        value: route.radius ?? initial,
        "data-key": "radius",
        onchange: (event) => event.target.reportValidity() && go({ ...route, radius: Number(event.target.value) }),
      }),
      ` of ${bits} bits`,
    ),
  );
}
