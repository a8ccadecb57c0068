/* The same query side by side: by the floats, by the code alone, by the code rescored; or in two collections. */

import * as api from "./api.js";
import { button, el, fill, problem, say } from "./dom.js";
import { choose, lost, QueryBar } from "./querybar.js";
import { asked, go, isQuery, whereOf } from "./route.js";
import { infoOf, session } from "./session.js";
import { tile } from "./tile.js";
import { scored, TIES, truthOf } from "./truth.js";
import { View } from "./view.js";
import { milliseconds, several, share } from "./words.js";

const K = 24;
const MOST = 96; // more than can be compared by looking
const NO_FLOATS =
  "This collection keeps codes and no floats, so what is nearest by floats is not known. Build it with rescore: [{name: float}] to see it here.";

export class Compare extends View {
  constructor(info) {
    super();
    this.info = info;
    this.bar = new QueryBar(info, K, MOST);
    this.choices = el("div", { class: "controls" });
    this.sides = el("div", { class: "sides" });
    this.element = el(
      "div",
      { class: "compare" },
      el("h1", { class: "unseen" }, "Side by side"),
      this.bar.element,
      this.choices,
      this.sides,
    );
    for (const kind of ["mouseover", "focusin"])
      this.sides.addEventListener(kind, (event) => this.highlight(event.target));
    for (const kind of ["mouseleave", "focusout"]) this.sides.addEventListener(kind, () => this.highlight(null));
  }

  async update(route) {
    const signal = this.begin();
    this.columns = [];
    this.bar.update(route);
    fill(this.choices, choicesOf(route));
    if (!isQuery(route) || lost(route)) return fill(this.sides, lost(route) ?? invitation());
    this.sides.setAttribute("aria-busy", "true");
    try {
      const columns = route.beside ? await collections(route, signal) : await ways(this.info, route, signal);
      if (signal.aborted) return;
      this.columns = columns;
      fill(
        this.sides,
        columns.map((column) => columnOf(route, column)),
      );
      say(columns.map(({ title, score }) => (score ? `${title}: recall ${share(score.recall)}` : title)).join(". "));
    } catch (error) {
      if (!signal.aborted)
        fill(
          this.sides,
          problem(error, () => this.update(route)),
        );
    } finally {
      if (!signal.aborted) this.sides.removeAttribute("aria-busy");
    }
  }

  highlight(target) {
    const id = target?.closest(".tile")?.dataset.id;
    for (const one of this.sides.querySelectorAll(".tile")) one.classList.toggle("same", one.dataset.id === id);
  }

  get list() {
    return this.columns.find(({ hits }) => hits)?.hits ?? [];
  }

  known(id) {
    return this.columns.flatMap(({ hits, elsewhere }) => (elsewhere ? [] : (hits ?? []))).find((hit) => hit.id === id);
  }

  beside(id, step) {
    const place = this.list.findIndex((hit) => hit.id === id);
    return place < 0 ? null : this.list[place + step];
  }
}

// -- what is compared

/** Three ways in one collection. */
async function ways(info, route, signal) {
  const k = Math.min(MOST, route.k ?? K);
  const ask = (rescore, depth = k) => hitsOf(route.name, route, { k: depth, where: whereOf(route), rescore }, signal);
  const rescored = info.rescore.name !== "none";
  const floats = info.floats ? ask("exact", TIES * k) : { error: { message: NO_FLOATS } };
  const [exact, code, built] = await Promise.all([floats, ask("none"), rescored && ask(null)]);
  const truth = exact.hits && truthOf(exact.hits, k);
  const against = (found) => ({ ...found, score: truth && found.hits && scored(found.hits, truth) });
  const others = [{ title: `${codeOf(info)} alone`, ...against(code) }];
  if (rescored) others.push({ title: `${codeOf(info)}, rescored by ${info.rescore.name}`, ...against(built) });
  const missedBy = (hit) => others.filter(({ score }) => score?.missed.includes(hit)).map(({ title }) => title);
  return [{ title: "Exact, by floats", ...exact, hits: exact.hits?.slice(0, k), missedBy }, ...others];
}

/** Two collections, each as it was built. Items of one are searched for in the other by their original. */
async function collections(route, signal) {
  const copies = await Promise.all(route.like.map((id) => api.photoOf(route.name, id, signal)));
  const own = await Promise.all(route.like.map((id) => api.item(route.name, id, signal)));
  const there = { ...asked(route, { photo: [...copies, ...route.photo], text: route.text }), name: route.beside };
  const itself = new Set(own.map(({ path }) => path)); // an item is not found by itself, here or there
  const both = await Promise.all([route, there].map((one) => inCollection(one, itself, signal)));
  const paths = both.map(({ hits }) => new Set((hits ?? []).map((hit) => hit.path)));
  both[1].route = { ...asked(there, {}), view: "photos", beside: "" };
  return both.map((column, i) => ({ ...column, other: paths[1 - i], elsewhere: i === 1 }));
}

async function inCollection(route, itself, signal) {
  const k = Math.min(MOST, route.k ?? K);
  const others = ({ hits, ...told }, most) => ({
    ...told,
    hits: hits?.filter(({ path }) => !itself.has(path)).slice(0, most),
  });
  const info = await infoOf(route.name);
  const ask = async (rescore, depth) =>
    others(await hitsOf(route.name, route, { k: depth + itself.size, where: whereOf(route), rescore }, signal), depth);
  const [built, exact] = await Promise.all([ask(null, k), info.floats ? ask("exact", TIES * k) : {}]);
  const score = built.hits && exact.hits && scored(built.hits, truthOf(exact.hits, k));
  const unscored = exact.hits ? "" : "recall is not known: it keeps no floats";
  return { title: route.name, detail: partsOf(info), score, unscored, ...built };
}

/** Hits, or the error where this way cannot be searched; what concerns every way is thrown. */
async function hitsOf(name, query, options, signal) {
  try {
    return await api.search(name, query, options, signal);
  } catch (error) {
    if (error.status !== 422) throw error;
    return { error };
  }
}

// -- what is seen

function columnOf(route, column) {
  const { title, detail, hits, ms, error, score } = column;
  const own = column.route ?? route;
  const head = (...more) => el("header", {}, el("h2", {}, title), detail && el("p", { class: "soft" }, detail), more);
  if (error)
    return el(
      "section",
      { class: "side", "aria-label": title },
      head(),
      el("p", { class: "notice" }, error.message || error.title),
    );
  return el(
    "section",
    { class: "side", "aria-label": title },
    head(
      el(
        "p",
        { class: "told" },
        score && [el("b", {}, `Recall ${share(score.recall)}`), " · "],
        el("span", { class: "soft" }, [milliseconds(ms), column.unscored].filter(Boolean).join(" · ")),
      ),
    ),
    el(
      "ul",
      { class: "strip", role: "list", "aria-label": title },
      hits.map((hit) => tile(hit, own, { pixels: 128, mark: markOf(hit, column) })),
    ),
    score && missing(own, score.missed),
  );
}

function markOf(hit, { score, other, missedBy }) {
  if (other?.size && !other.has(hit.path))
    return { kind: "wrong", sign: "≠", words: "not in the other collection's results" };
  if (!other && score?.wrong.includes(hit))
    return { kind: "wrong", sign: "✕", words: "not among the nearest by floats" };
  const by = missedBy?.(hit) ?? [];
  return by.length ? { kind: "missed", sign: "!", words: `missed by ${by.join(" and ")}` } : null;
}

function missing(route, missed) {
  if (!missed.length) return el("p", { class: "told good" }, "Missed nothing.");
  const words = `Missed ${several(missed.length, "item")}`;
  return el(
    "div",
    { class: "missing" },
    el("h3", {}, words),
    el(
      "ul",
      { class: "strip small", role: "list", "aria-label": words },
      missed.map((hit) => tile(hit, route, { pixels: 64 })),
    ),
  );
}

function choicesOf(route) {
  const others = session.collections.filter((one) => one.name !== route.name);
  const filters = whereOf(route);
  const option = (value, words) => el("option", { value, selected: value === route.beside }, words);
  const pick = (event) => go({ ...route, beside: event.target.value });
  return [
    others.length > 0 &&
      el(
        "label",
        { class: "choice" },
        "Compare ",
        el(
          "select",
          { onchange: pick, "data-key": "beside" },
          option("", "floats, code and rescored code"),
          others.map(({ name }) => option(name, `with ${name}`)),
        ),
      ),
    filters &&
      el(
        "span",
        { class: "choice soft" },
        "Only ",
        el("code", {}, filters),
        button("close", "Without the filter", () => go({ ...route, filter: {}, where: "" }), {
          "data-key": "no filter",
        }),
      ),
    route.beside &&
      route.unlike.length > 0 &&
      el("span", { class: "soft" }, "“Not like” is of the first collection alone."),
    isQuery(route) &&
      legend(
        route.beside
          ? [["≠", "only in this one"]]
          : [
              ["!", "missed by a code"],
              ["✕", "not among the nearest by floats"],
            ],
      ),
  ];
}

const legend = (signs) =>
  el(
    "span",
    { class: "legend soft" },
    signs.map(([sign, words]) =>
      el(
        "span",
        { class: sign === "!" ? "missed" : "wrong" },
        el("b", { class: "sign", "aria-hidden": "true" }, sign),
        words,
      ),
    ),
  );

const codeOf = (info) => (info.bits ? `Code of ${info.bits} bits` : "The index");
const partsOf = (info) =>
  [
    info.codec.name,
    info.bits && `${info.bits} bits`,
    info.backend.name,
    info.rescore.name !== "none" && `rescored by ${info.rescore.name}`,
  ]
    .filter(Boolean)
    .join(" · ");

const invitation = () =>
  el(
    "div",
    { class: "notice" },
    el(
      "p",
      {},
      el("strong", {}, "One query, several ways."),
      " Choose a photo, or open one of the collection and take “Side by side”: what the code misses is marked.",
    ),
    button("photo", "Choose a photo", () => choose(), { wide: true }),
  );
