/* One picture among many: the photo, what can be done with it, its label and how far it is. */

import { thumbOf } from "./api.js";
import { button, el } from "./dom.js";
import { alsoLike, go, link, moreLike, notLike } from "./route.js";
import { session } from "./session.js";
import { load } from "./thumbs.js";
import { distance, fileOf, labelOf, nameOf } from "./words.js";

const THUMBS = [128, 256, 512];

/** A list item; `mark` is a class with words for it, `far` how far it is, `beside` what else stands in the tile. */
export function tile(item, route, { pixels = 180, mark = null, far = distance(item.distance), beside = null } = {}) {
  const label = labelOf(item.label);
  const told = [
    nameOf(item),
    label,
    far && (far === distance(item.distance) ? `distance ${far}` : far),
    gone(route.name, item) && "the original is gone",
    mark?.words,
  ];
  return el(
    "li",
    { class: ["tile", mark?.kind, item.relevant === false && "beyond"].filter(Boolean).join(" "), "data-id": item.id },
    el(
      "a",
      {
        class: "photo",
        href: link({ ...route, item: item.id }),
        "aria-label": told.filter(Boolean).join(", "),
        title: nameOf(item),
        "data-key": `item ${item.id}`,
      },
      picture(route.name, item, pixels),
      mark?.sign && el("b", { class: "sign", "aria-hidden": "true" }, mark.sign),
    ),
    actions(item, route),
    beside,
    el(
      "p",
      { class: "caption", "aria-hidden": "true" },
      el("span", {}, label || fileOf(nameOf(item))),
      far && el("span", { class: "far" }, far),
    ),
  );
}

/** The thumbnail of an item, at about `pixels`; its name where it is a vector. */
export function picture(name, item, pixels) {
  if (!pictured(name)) return el("span", { class: "vector", "aria-hidden": "true" }, nameOf(item));
  const wanted = pixels * Math.min(2, devicePixelRatio);
  const image = el("img", { alt: "", decoding: "async", draggable: "false" });
  image.addEventListener("error", () => image.replaceWith(none("no picture")));
  load(image, thumbOf(name, item.id, THUMBS.find((side) => side >= wanted) ?? 512));
  return gone(name, item) ? [image, none("original gone")] : image;
}

const pictured = (name) => session.infos.get(name)?.images !== false;
const gone = (name, item) => item.missing && pictured(name);
const none = (words) => el("span", { class: "none", "aria-hidden": "true" }, words);

const actions = (item, route) =>
  el(
    "div",
    { class: "actions" },
    button("like", "More like this (m)", () => go(moreLike(route, item.id)), { tabindex: -1 }),
    button("add", "Add to what is searched for (a)", () => go(alsoLike(route, item.id)), { tabindex: -1 }),
    button("unlike", "Not like this (n)", () => go(notLike(route, item.id)), { tabindex: -1 }),
  );
