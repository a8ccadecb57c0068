/* The queries that rows of a comparison did worst on, with their photos where a served collection has them. */

import * as api from "./api.js";
import { el } from "./dom.js";
import { link } from "./route.js";
import { infoOf, session } from "./session.js";
import { picture } from "./tile.js";
import { fileOf, several } from "./words.js";

const AT_ONCE = 20; // paths in one filter
const PIXELS = 128;

/** A section for `rows`, those that know their worst queries; null where none does. */
export async function worstOf(rows, measure, signal) {
  const known = rows.filter(({ worst }) => worst?.length);
  if (!known.length) return null;
  const album = await albumOf([...new Set(known.flatMap(({ worst }) => worst.map(([path]) => path)))], signal);
  return el(
    "section",
    { class: "worst", "aria-label": "Worst queries" },
    el("h2", {}, "Worst queries"),
    el(
      "p",
      { class: "soft" },
      `Those with the least ${measure}. `,
      album
        ? `The photos are those of ${album.name} with the same path and label: each leads to what is found there.`
        : "No collection that is served has them, so they are named.",
    ),
    known.map((row) => [
      el("h3", {}, [row.title || row.extractor, row.name].join(" · ")),
      el(
        "ul",
        { class: "strip", role: "list", "aria-label": `Worst queries of ${row.name}` },
        row.worst.map((query) => one(query, album)),
      ),
      classesOf(row, measure),
    ]),
  );
}

function one([path, labels, value], album) {
  const found = album?.items.get(path);
  const item = found && sameLabel(found.label, labels) ? found : null;
  const label = labels.join(", ");
  const told = [path, label, value.toFixed(3)].filter(Boolean).join(", ");
  const shown = item ? picture(album.name, item, PIXELS) : el("span", { class: "vector" }, fileOf(path));
  const there = item && link({ kind: "c", name: album.name, view: "compare", like: [item.id] });
  return el(
    "li",
    { class: "tile" },
    item
      ? el("a", { class: "photo", href: there, title: path, "aria-label": `${told}: what is found` }, shown)
      : el("span", { class: "photo", title: path }, shown),
    el(
      "p",
      { class: "caption", "aria-hidden": item !== null },
      el("span", {}, label || fileOf(path)),
      el("span", { class: "far" }, value.toFixed(3)),
    ),
  );
}

/** Of the collections that are served, the one with most of the photos: its name, and its items by path. */
async function albumOf(paths, signal) {
  const all = await Promise.all(session.collections.map(({ name }) => among(name, paths, signal).catch(() => null)));
  const best = all.filter((album) => album?.items.size).sort((a, b) => b.items.size - a.items.size)[0];
  if (best) await infoOf(best.name); // whether it has pictures
  return best;
}

async function among(name, paths, signal) {
  const items = new Map();
  for (let start = 0; start < paths.length; start += AT_ONCE) {
    const some = paths.slice(start, start + AT_ONCE).map((path) => JSON.stringify(path));
    const found = await api.items(name, { where: `path in (${some.join(", ")})`, limit: 1000 }, signal);
    for (const item of found.items) items.set(item.path, item);
  }
  return { name, items };
}

const sameLabel = (label, labels) => [label ?? []].flat().map(String).join("\n") === labels.map(String).join("\n");

/** What the mean of a row hides: the mean of each class, the worst first. */
function classesOf({ classes = {} }, measure) {
  const lines = Object.entries(classes).sort(([, [, a]], [, [, b]]) => a - b);
  const line = ([label, [queries, mean]]) =>
    el(
      "li",
      {},
      `${label} `,
      el("b", {}, mean.toFixed(4)),
      el("span", { class: "soft" }, ` ${several(queries, "query", "queries")}`),
    );
  return (
    lines.length > 1 &&
    el(
      "details",
      {},
      el("summary", {}, `${measure} of ${several(lines.length, "class", "classes")}`),
      el("ol", {}, lines.map(line)),
    )
  );
}
