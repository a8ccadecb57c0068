/* What is searched for: photos, items, and what it is not to be like. */

import * as api from "./api.js";
import { button, el, fill, icon } from "./dom.js";
import { asked, go, isQuery, link, read } from "./route.js";
import { picture } from "./tile.js";
import { several } from "./words.js";

const KS = [12, 24, 48, 96, 240, 1000];

export class QueryBar {
  constructor(info, k, most = 1000) {
    Object.assign(this, { info, k, most });
    this.element = el("section", { class: "query", "aria-label": "What is searched for" });
  }

  update(route) {
    this.element.classList.toggle("empty", !isQuery(route));
    fill(this.element, isQuery(route) ? this.chips(route) : invitation(this.info), this.info.texts && words(route));
  }

  chips(route) {
    const without = (list, id) => route[list].filter((one) => one !== id);
    const chip = (list, id) =>
      el(
        "li",
        { class: `chip ${list === "photo" ? "given" : list}` },
        list === "photo"
          ? uploaded(id)
          : el(
              "a",
              { href: link({ ...route, item: id }), "aria-label": `Item ${id}`, class: "photo" },
              picture(route.name, { id }, 64),
            ),
        button(
          "close",
          `Without this ${list === "unlike" ? "“not like”" : "photo"}`,
          () => go(asked(route, { ...route, [list]: without(list, id) })),
          { "data-key": `${list} ${id}` },
        ),
      );
    const group = (title, chips) =>
      chips.length > 0 && [
        el("span", { class: "soft" }, title),
        el("ul", { class: "chips", role: "list", "aria-label": title }, chips),
      ];
    return [
      group("Like", [...route.photo.map((id) => chip("photo", id)), ...route.like.map((id) => chip("like", id))]),
      group(
        "not like",
        route.unlike.map((id) => chip("unlike", id)),
      ),
      this.info.images &&
        button("add", "Add a photo", () => choose({ add: true }), { wide: true, class: "quiet", "data-key": "add" }),
      el("span", { class: "stretch" }),
      el("label", { class: "choice" }, "Show ", this.numbers(route)),
      el(
        "a",
        { class: "button quiet", href: link({ ...asked(route, {}), view: "photos" }), "data-key": "clear" },
        "Clear",
      ),
    ];
  }

  numbers(route) {
    const chosen = Math.min(route.k ?? this.k, this.most);
    const options = [...new Set([...KS.filter((k) => k <= this.most), chosen])].sort((a, b) => a - b);
    const pick = (event) => go({ ...route, k: Number(event.target.value) });
    return el(
      "select",
      { onchange: pick, "data-key": "k", "aria-label": "How many results" },
      options.map((k) => el("option", { value: k, selected: k === chosen }, k)),
    );
  }
}

/** What is to be seen, written down: alone, or with the photos that are searched for. */
function words(route) {
  const input = el("input", {
    type: "search",
    name: "text",
    value: route.text,
    placeholder: "Say what is to be seen: a red bus",
    "data-key": "text",
    "aria-label": "Say what is to be seen",
  });
  const search = (event) => {
    event.preventDefault();
    go(asked(route, { ...route, text: input.value.trim() }));
  };
  const send = button("like", "Search", null, { type: "submit", "data-key": "search" });
  return el("form", { class: "say", role: "search", onsubmit: search }, input, send);
}

const invitation = ({ images, items }) =>
  images
    ? el(
        "button",
        { type: "button", class: "dropzone", "data-key": "choose", onclick: () => choose() },
        icon("photo"),
        el(
          "span",
          {},
          el("b", {}, "Drop, paste or choose a photo"),
          el(
            "span",
            { class: "soft" },
            items ? `or begin from any of the ${several(items, "item")} of the collection` : "to find what is like it",
          ),
        ),
      )
    : el("p", { class: "notice" }, "This collection holds vectors and takes no photos: begin from any of its items.");

function uploaded(id) {
  const photo = api.photos.get(id);
  return photo ? el("img", { src: photo.url, alt: photo.name, title: photo.name }) : el("span", { class: "none" }, "?");
}

/** Ask for files and search with them. */
export function choose({ add = false } = {}) {
  const input = el("input", { type: "file", accept: "image/*", multiple: "" });
  input.addEventListener("change", () => searchWith([...input.files], { add }));
  input.click();
}

/** Search with `files`, as one query; `add` to what is searched for already. */
export function searchWith(files, { add = false } = {}) {
  if (!files.length) return;
  const route = read();
  const photo = files.map(api.keepPhoto);
  go(add ? asked(route, { ...route, photo: [...route.photo, ...photo] }) : asked(route, { photo }));
}

/** Words where a link began from a photo that is not here; else null. */
export function lost(route) {
  if (route.photo.every((id) => api.photos.has(id))) return null;
  return el(
    "div",
    { class: "notice" },
    el(
      "p",
      {},
      el("strong", {}, "This search began from a photo that a link cannot carry."),
      " Photos stay with whoever dropped them: drop it here again to see what is like it.",
    ),
    button("photo", "Choose a photo", () => choose(), { wide: true }),
  );
}
