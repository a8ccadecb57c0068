/* One item, large, with all that is known of it. */

import * as api from "./api.js";
import { button, dialog, el, fill, problem, say } from "./dom.js";
import { alsoLike, go, link, moreLike, notLike, read } from "./route.js";
import { changed } from "./session.js";
import { distance, labelOf, nameOf } from "./words.js";

export class Lightbox {
  /** Show the item of `route` over `view`, or none. */
  update(route, view, info) {
    if (route.item === null || !info) return this.leave();
    Object.assign(this, { route, view, info });
    if (!this.box) this.open();
    this.show(view.known?.(route.item) ?? { id: route.item, path: "" });
  }

  leave() {
    const { box } = this;
    this.box = null; // closed by the page, which is where it goes already
    box?.close();
  }

  open() {
    this.stage = el("figure", { class: "stage" });
    this.facts = el("div", { class: "facts" });
    this.told = el("div", { class: "edge", role: "status" });
    this.box = dialog(
      "lightbox",
      "Photo",
      this.stage,
      this.facts,
      this.told,
      button("close", "Close (Escape)", () => this.box.close(), { class: "corner" }),
      button("back", "The one before (left arrow)", () => this.step(-1), { class: "before" }),
      button("forward", "The next (right arrow)", () => this.step(1), { class: "after" }),
    );
    const { box } = this;
    box.addEventListener("close", () => this.closed(box));
    this.box.addEventListener("keydown", (event) => this.key(event));
  }

  closed(box) {
    this.request?.abort();
    if (this.box !== box) return;
    this.box = null;
    if (history.state?.inside) history.back();
    else go({ ...read(), item: null }, { replace: true });
  }

  key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input")) return;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) this.step(step);
  }

  async step(by) {
    const { route, view, told } = this;
    const known = view.known?.(route.item);
    try {
      const next = await view.beside?.(route.item, by);
      if (this.route !== route || !this.box) return; // somebody went on meanwhile
      if (next) go({ ...route, item: next.id }, { replace: true });
      else fill(told, el("p", {}, known ? "There is no other." : "What is beside it is not loaded."));
    } catch (error) {
      fill(told, problem(error));
    }
  }

  async show(known) {
    const { route, info } = this;
    this.request?.abort();
    this.request = new AbortController();
    const { signal } = this.request;
    this.box.dataset.id = known.id;
    fill(this.told);
    fill(
      this.stage,
      info.images ? photo(route.name, known) : el("span", { class: "none" }, "A vector, without a picture"),
    );
    this.describe(known, {});
    try {
      const found = await api.item(route.name, known.id, signal);
      if (signal.aborted) return;
      this.describe({ ...known, ...found }, found.payload);
      say(nameOf(found));
    } catch (error) {
      if (!signal.aborted) fill(this.facts, problem(error));
    }
  }

  describe(item, payload) {
    const { route, info } = this;
    const facts = [
      ["Label", labelOf(item.label)],
      ["Distance", distance(item.distance)],
      ["Id", item.id],
      ...Object.entries(payload).map(([key, value]) => [
        key,
        typeof value === "object" ? JSON.stringify(value) : String(value),
      ]),
    ];
    fill(
      this.facts,
      el("h2", {}, nameOf(item)),
      info.images && item.missing && el("p", { class: "soft" }, "The original file is gone from where it was."),
      el(
        "dl",
        {},
        facts.filter(([, value]) => value !== "").map(([key, value]) => [el("dt", {}, key), el("dd", {}, value)]),
      ),
      el(
        "div",
        { class: "does" },
        button("like", "More like this", () => go(moreLike(route, item.id)), {
          wide: true,
          class: "main",
          "data-key": "like",
        }),
        button("add", "Add to the search", () => go(alsoLike(route, item.id)), { wide: true, "data-key": "add" }),
        button("unlike", "Not like this", () => go(notLike(route, item.id)), { wide: true, "data-key": "unlike" }),
        el(
          "a",
          { class: "button wide", href: link({ ...moreLike(route, item.id), view: "compare" }), "data-key": "compare" },
          "Side by side",
        ),
        info.images &&
          !item.missing &&
          el(
            "a",
            {
              class: "button wide quiet",
              href: api.imageOf(route.name, item.id),
              target: "_blank",
              rel: "noopener",
              "data-key": "original",
            },
            "The original",
          ),
        info.write &&
          button(
            "trash",
            "Remove from the collection",
            () => removeItems(route.name, [item.id], () => this.box.close()),
            { wide: true, class: "quiet", "data-key": "remove" },
          ),
      ),
    );
  }
}

function photo(name, item) {
  const small = el("img", { class: "small", src: api.thumbOf(name, item.id, 256), alt: "" });
  small.addEventListener("error", () => small.remove());
  if (item.missing) return [small, el("span", { class: "none" }, "The original is gone")];
  const full = el("img", { class: "full", src: api.imageOf(name, item.id), alt: nameOf(item) });
  full.addEventListener("load", () => small.remove());
  full.addEventListener("error", () => full.replaceWith(el("span", { class: "none" }, "There is no picture to show")));
  return [small, full];
}

/** Ask, then remove items from the collection; files stay. `done` is called when they are gone. */
export function removeItems(name, ids, done) {
  const words = ids.length === 1 ? "this item" : `these ${ids.length} items`;
  const told = el("div", { role: "status" });
  const remove = async (event) => {
    event.currentTarget.disabled = true; // once is enough
    try {
      for (const [number, id] of ids.entries()) {
        if (ids.length > 1) fill(told, el("p", { class: "soft" }, `Removing ${number + 1} of ${ids.length}…`));
        await api.remove(name, id);
      }
    } catch (failure) {
      fill(told, problem(failure));
      return;
    } finally {
      changed(name); // as far as it came
      dispatchEvent(new Event("changed"));
    }
    ask.close();
    say("Removed from the collection.");
    done();
  };
  const ask = dialog(
    "ask",
    "Remove from the collection?",
    el("h2", {}, `Remove ${words} from the collection?`),
    el("p", {}, "Your files stay where they are; of files, only what was uploaded here goes."),
    told,
    el(
      "div",
      { class: "does" },
      button("trash", "Remove", remove, { wide: true, class: "danger" }),
      button(null, "Cancel", () => ask.close(), { wide: true, autofocus: true }),
    ),
  );
}
