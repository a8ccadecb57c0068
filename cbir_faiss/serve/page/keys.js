/* The keyboard: every key is in this table, and the table is what `?` shows. */

import { dialog, el } from "./dom.js";
import { choose } from "./querybar.js";
import { alsoLike, go, moreLike, notLike, queryOf, read, VIEWS } from "./route.js";

/** `of` the item in the focus (or open) where a key is about one. */
const KEYS = [
  { keys: ["u"], words: "Choose a photo to search with", does: () => choose() },
  { keys: ["t"], words: "Say what is to be seen", does: () => document.querySelector(".say input")?.focus() },
  { keys: ["f"], words: "To the filters", does: () => focusFilters() },
  {
    keys: ["g"],
    words: "To the photos",
    does: (route, view) => (view.focus ? view.focus() : document.querySelector(".tile .photo")?.focus()),
  },
  { keys: ["←", "→", "↑", "↓"], words: "From photo to photo" },
  { keys: ["Enter"], words: "Open the photo" },
  { keys: ["m"], words: "More like this photo", of: (route, id) => go(moreLike(route, id)) },
  { keys: ["a"], words: "Add it to the search", of: (route, id) => go(alsoLike(route, id)) },
  { keys: ["n"], words: "Not like this photo", of: (route, id) => go(notLike(route, id)) },
  { keys: ["s"], words: "This photo side by side", of: (route, id) => go({ ...moreLike(route, id), view: "compare" }) },
  { keys: ["1", "…", "6"], words: "Photos, side by side, duplicates, map, state, runs" },
  { keys: ["Alt ←"], words: "Back" },
  { keys: ["Esc"], words: "Close what is open" },
  { keys: ["?"], words: "This list", does: () => help() },
];

const OFF = "keys of one character are off"; // in localStorage; whoever dictates presses such keys unawares

/** Listen; `current` gives the view that is shown. */
export function listen(current) {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || writing(event.target)) return;
    if (event.target.matches(".strip .photo")) walk(event);
    const open = document.querySelector("dialog[open]");
    if (open && !open.classList.contains("lightbox")) return;
    if (localStorage.getItem(OFF)) return;
    const route = read();
    if (/^[1-6]$/.test(event.key) && !open)
      return go(
        event.key === "6"
          ? { kind: "runs" }
          : {
              kind: "c",
              name: route.kind === "c" ? route.name : "",
              ...queryOf(route),
              view: VIEWS[event.key - 1],
            },
      );
    const found = KEYS.find(({ keys, does, of }) => keys.includes(event.key) && (does || of));
    if (!found || (open && found.does && event.key !== "?")) return;
    const id = Number((open ?? document.activeElement.closest("[data-id]"))?.dataset.id ?? NaN);
    if (found.of && Number.isNaN(id)) return;
    event.preventDefault();
    found.of ? found.of(route, id) : found.does(route, current());
  });
}

export function help() {
  const rows = KEYS.map(({ keys, words }) =>
    el(
      "tr",
      {},
      el(
        "td",
        {},
        keys.map((key) => (key === "…" ? " … " : el("kbd", {}, key))),
      ),
      el("td", {}, words),
    ),
  );
  dialog(
    "help",
    "Keys",
    el("h2", {}, "Keys"),
    el("table", {}, el("tbody", {}, rows)),
    el(
      "label",
      { class: "value" },
      el("input", { type: "checkbox", checked: !localStorage.getItem(OFF), onchange: turn }),
      "Keys of one character (u, 1, ?) are on",
    ),
    el("p", { class: "soft" }, "Every state of this page has its own link: copy the address to come back to it."),
    el("form", { method: "dialog" }, el("button", { class: "button wide", autofocus: "" }, "Close")),
  );
}

const turn = ({ target }) => (target.checked ? localStorage.removeItem(OFF) : localStorage.setItem(OFF, "yes"));

function focusFilters() {
  const filters = document.querySelector("details.filters");
  if (!filters) return;
  filters.open = true;
  filters.querySelector("input")?.focus();
}

/** From photo to photo in rows that are all there; a grid has its own. */
function walk(event) {
  const all = [...event.target.closest(".strip").querySelectorAll(".photo")];
  const columns = all.filter((one) => one.getBoundingClientRect().top === all[0].getBoundingClientRect().top).length;
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
  if (by === undefined) return;
  event.preventDefault();
  all[all.indexOf(event.target) + by]?.focus();
}

const writing = (target) => target.closest("textarea, select, input:not([type=checkbox])") !== null;
