/* What a collection is, what it takes, and how fast it answers. */

import * as api from "./api.js";
import { button, el, fill, problem } from "./dom.js";
import { session } from "./session.js";
import { scored, TIES, truthOf } from "./truth.js";
import { View } from "./view.js";
import { count, milliseconds, several, share, size } from "./words.js";

const K = 10;
const QUERIES = 20; // items that recall is measured with here

export class State extends View {
  constructor(info) {
    super();
    this.info = info;
    this.element = el("div", { class: "state" });
  }

  async update(route) {
    const signal = this.begin();
    try {
      const info = await api.info(route.name);
      if (signal.aborted) return;
      session.infos.set(route.name, info);
      const recall = this.recall(info, signal);
      fill(this.element, el("h1", {}, route.name), figures(info), how(info), times(info), recall, files(info));
    } catch (error) {
      if (signal.aborted) return;
      fill(
        this.element,
        problem(error, () => this.update(route)),
      );
    }
  }

  recall(info, signal) {
    const told = el(
      "div",
      { role: "status" },
      info.floats && `How many of the ${K} nearest by floats are found, with ${QUERIES} items.`,
    );
    const measure = async () => {
      fill(told, "Searching…");
      try {
        const { mean, around, queries } = await recallOf(info, signal);
        fill(told, el("b", {}, `${share(mean)} ± ${share(around)}`), ` of the ${K} nearest, over ${queries} items`);
      } catch (error) {
        if (!signal.aborted) fill(told, problem(error));
      }
    };
    const measured = info.floats && info.items > 1;
    return (
      (measured || info.recall) &&
      el(
        "section",
        {},
        el("h2", {}, "Recall"),
        info.recall && el("p", {}, lastOf(info.recall)),
        told,
        measured && button(null, "Measure it", measure, { wide: true }),
      )
    );
  }
}

/** What `cbir recall` said last. */
const lastOf = ({ recall, ci95: [low, high], k, queries, generation, current }) => [
  el("b", {}, share(recall)),
  ` (${share(low)} to ${share(high)}) of the ${k} nearest, over ${several(queries, "query", "queries")}, by `,
  el("code", {}, "cbir recall"),
  !current && el("span", { class: "soft" }, `, of generation ${count(generation)}: the collection has changed since`),
];

/** Mean recall of items that are evenly chosen, and half of its 95 % interval. */
async function recallOf({ name, items }, signal) {
  const queries = Math.min(QUERIES, items);
  const places = Array.from({ length: queries }, (_, i) => Math.floor((i * items) / queries));
  const pages = await Promise.all(places.map((offset) => api.items(name, { offset, limit: 1 }, signal)));
  const ids = pages.map((page) => page.items[0].id);
  const ask = (rescore, k) => api.searchEach(name, ids, { k, rescore }, signal);
  const [built, exact] = await Promise.all([ask(null, K), ask("exact", TIES * K)]);
  const recalls = built.map((hits, i) => scored(hits, truthOf(exact[i], K)).recall);
  const mean = recalls.reduce((sum, one) => sum + one, 0) / queries;
  const spread = recalls.reduce((sum, one) => sum + (one - mean) ** 2, 0) / Math.max(1, queries - 1);
  return { mean, around: 1.96 * Math.sqrt(spread / queries), queries };
}

const figures = (info) =>
  el(
    "ul",
    { class: "figures", role: "list" },
    [
      [count(info.items), "items"],
      [count(info.segments), info.segments === 1 ? "segment" : "segments"],
      [size(total(info.bytes)), "on disk"],
      [info.items ? size(total(info.bytes) / info.items) : "–", "an item"],
      info.deleted > 0 && [count(info.deleted), "deleted rows"],
      info.failed > 0 && [count(info.failed), "unreadable files"],
    ]
      .filter(Boolean)
      .map(([figure, words]) => el("li", {}, el("b", {}, figure), " ", words)),
  );

const how = (info) =>
  section("How it searches", [
    ["Extractor", chosen(info.extractor) || "none: it holds vectors"],
    ["Code", `${chosen(info.codec)}, of ${count(info.dim)} dimensions`],
    ["Index", chosen(info.backend)],
    ["Rescoring", info.rescore.name === "none" ? "none" : chosen(info.rescore)],
    ["Floats kept", info.floats ? "yes, so search can be exact" : "no"],
    ["Writing", info.write ? "allowed" : "not allowed (cbir serve --write)"],
    ["Generation", info.generation],
  ]);

const times = ({ latency_ms: latency }) =>
  section(
    "How fast it answered",
    latency.p50 === null
      ? [["Searches", "none since it was started"]]
      : ["p50", "p95", "p99"].map((name) => [name, milliseconds(latency[name])]),
  );

function files({ bytes }) {
  const kinds = {};
  for (const [name, length] of Object.entries(bytes)) {
    const kind = kindOf(name);
    kinds[kind] = (kinds[kind] ?? 0) + length;
  }
  const rows = Object.entries(kinds).sort(([, a], [, b]) => b - a);
  const most = rows[0]?.[1] || 1;
  return el(
    "section",
    {},
    el("h2", {}, "Where the bytes are"),
    el(
      "table",
      { class: "bars" },
      el(
        "tbody",
        {},
        rows.map(([kind, length]) =>
          el(
            "tr",
            {},
            el("th", { scope: "row" }, kind),
            el("td", { class: "number" }, size(length)),
            el(
              "td",
              { class: "wide" },
              el("meter", { min: 0, max: most, value: length, "aria-label": `${kind}: ${size(length)}` }),
            ),
          ),
        ),
      ),
    ),
  );
}

/** Files of all segments by what they are: segments/…/code.npy is "code.npy". */
const kindOf = (name) => (name.startsWith("extractor/") ? "extractor" : name.split("/").pop());
const total = (bytes) => Object.values(bytes).reduce((sum, one) => sum + one, 0);

const section = (title, facts) =>
  el(
    "section",
    {},
    el("h2", {}, title),
    el(
      "dl",
      {},
      facts.map(([key, value]) => [el("dt", {}, key), el("dd", {}, String(value))]),
    ),
  );

/** A plugin with its options: `itq bits=64`. */
function chosen(entry) {
  if (!entry) return "";
  const { name, ...options } = { ...entry, ...entry.options };
  const told = Object.entries(options).filter(
    ([key, value]) => key !== "options" && value !== null && typeof value !== "object",
  );
  return [name, ...told.map(([key, value]) => `${key} ${value}`)].join(", ");
}
