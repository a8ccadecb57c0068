/* Comparisons: rows sorted and filtered, and any of them beside each other. */

import * as api from "./api.js";
import { el, fill, problem, say } from "./dom.js";
import { go, link, read } from "./route.js";
import { session } from "./session.js";
import { View } from "./view.js";
import { count, several, size } from "./words.js";
import { worstOf } from "./worst.js";

const MISSING = "–";
const fixed = (digits) => (value) =>
  value.toLocaleString("en-GB", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const bytes = (value) => fixed(value >= 100 ? 0 : 1)(value);

export class Runs extends View {
  constructor() {
    super();
    this.element = el("div", { class: "runs" });
  }

  async update() {
    const runs = session.runs.map(({ name, rows, problem: wrong }) =>
      el(
        "li",
        {},
        el(
          "a",
          { href: link({ kind: "runs", name }), class: wrong && "bad" },
          el("b", {}, name),
          el("span", { class: "soft" }, wrong ?? several(rows, "row")),
        ),
      ),
    );
    fill(
      this.element,
      el("h1", {}, "Runs"),
      el("ul", { class: "cards", role: "list" }, runs),
      session.unlisted && problem(session.unlisted),
      !runs.length &&
        !session.unlisted &&
        el(
          "p",
          { class: "notice" },
          "None is served. ",
          el("code", {}, "cbir serve photos.cbir runs/demo"),
          " shows a comparison beside the collection.",
        ),
    );
  }
}

export class Run extends View {
  constructor() {
    super();
    this.element = el("div", { class: "runs" });
    this.head = el("div");
    this.table = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Rows" });
    this.pair = el("div");
    this.worst = el("div");
    this.element.append(this.head, this.pair, this.table, this.worst);
  }

  async update(route) {
    const signal = this.begin();
    try {
      const results = await api.run(route.name, signal);
      if (signal.aborted) return;
      const columns = columnsOf(results);
      const rows = results.rows.map((row, place) => ({ ...row, place }));
      const shown = sorted(
        rows.filter((row) => fits(row, route.find)),
        columns,
        route.sort,
      );
      fill(this.head, headOf(route, results, rows.length, shown.length));
      fill(this.pair, route.rows.length > 0 && beside(route, columns, rows));
      fill(this.table, tableOf(route, columns, shown, results.recommendation?.row));
      const looked = await worstOf(lookedAt(route, rows, results.recommendation?.row), results.measure, signal);
      if (!signal.aborted) fill(this.worst, looked);
    } catch (error) {
      if (!signal.aborted)
        fill(
          this.table,
          problem(error, () => this.update(route)),
        );
    }
  }
}

/** The rows that were chosen, else the recommended one, else the first. */
function lookedAt(route, rows, best) {
  const chosen = route.rows.map((place) => rows[place]).filter(Boolean);
  return chosen.length ? chosen : [rows[best] ?? rows[0]].filter(Boolean);
}

function headOf(route, results, all, shown) {
  const find = el("input", {
    type: "search",
    placeholder: "itq 256, flat, float …",
    value: route.find,
    "data-key": "find",
    oninput: (event) => go({ ...read(), find: event.target.value }, { replace: true }),
  });
  return [
    el("h1", {}, route.name),
    results.recommendation?.sentence && el("p", { class: "advice" }, results.recommendation.sentence),
    el(
      "div",
      { class: "controls" },
      el("label", { class: "choice" }, "Rows with ", find),
      el(
        "span",
        { class: "soft", role: "status" },
        shown < all ? `${count(shown)} of ${several(all, "row")}` : several(all, "row"),
      ),
      el("span", { class: "stretch" }),
      session.runs.find(({ name }) => name === route.name)?.report &&
        el(
          "a",
          { class: "button wide", href: api.reportOf(route.name), target: "_blank", rel: "noopener" },
          "The report",
        ),
    ),
  ];
}

/** Every word that was written is somewhere in the row. */
const fits = (row, find) =>
  find
    .toLowerCase()
    .split(/[\s,]+/)
    .every((word) => `${row.title} ${row.extractor} ${row.name}`.toLowerCase().includes(word));

function sorted(rows, columns, sort) {
  const column = columns.find(({ key }) => key === sort.replace(/^-/, ""));
  if (!column) return rows;
  const sign = sort.startsWith("-") ? -1 : 1;
  const value = (row) => column.value(row) ?? null;
  return rows.sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return (x === null) - (y === null); // what is missing comes last
    return sign * (typeof x === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true }));
  });
}

function tableOf(route, columns, rows, best) {
  const chosen = new Set(route.rows);
  const pick = (place) =>
    go({ ...route, rows: chosen.has(place) ? route.rows.filter((one) => one !== place) : [...route.rows, place] });
  const line = (row) =>
    el(
      "tr",
      { class: row.place === best && "best" },
      el(
        "td",
        {},
        el("input", {
          type: "checkbox",
          checked: chosen.has(row.place),
          "aria-label": `Beside others: ${row.name}`,
          "data-key": `row ${row.place}`,
          onchange: () => pick(row.place),
        }),
      ),
      columns.map((column) =>
        el(
          "td",
          { class: !column.left && "number" },
          written(column, row),
          row.place === best && column.key === "name" && el("b", {}, " recommended"),
        ),
      ),
    );
  return el(
    "table",
    {},
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        el("th", {}, el("span", { class: "unseen" }, "Beside each other")),
        columns.map((column) => headCell(route, column)),
      ),
    ),
    el("tbody", {}, rows.map(line)),
  );
}

function headCell(route, column) {
  const down = route.sort === `-${column.key}`;
  const up = route.sort === column.key;
  const first = column.up || column.left ? column.key : `-${column.key}`; // what is better comes first
  const other = first.startsWith("-") ? column.key : `-${column.key}`;
  const next = route.sort === first ? other : first;
  const sort = () => {
    go({ ...route, sort: next }, { replace: true });
    say(`Sorted by ${column.title}`);
  };
  return el(
    "th",
    { class: !column.left && "number", "aria-sort": up ? "ascending" : down ? "descending" : null, scope: "col" },
    el(
      "button",
      { type: "button", onclick: sort, "data-key": `sort ${column.key}` },
      column.title,
      el("span", { "aria-hidden": "true" }, up ? " ▴" : down ? " ▾" : ""),
    ),
  );
}

/** The chosen rows as columns, a line for each figure, the better of two marked. */
function beside(route, columns, rows) {
  const chosen = route.rows.map((place) => rows[place]).filter(Boolean);
  const line = (column) => {
    const values = chosen.map((row) => column.value(row));
    const numbers = values.filter((value) => typeof value === "number");
    const best =
      column.left || numbers.length < 2 || new Set(numbers).size < 2
        ? null
        : column.up
          ? Math.min(...numbers)
          : Math.max(...numbers);
    return el(
      "tr",
      {},
      el("th", { scope: "row" }, column.title),
      chosen.map((row, i) =>
        el(
          "td",
          { class: values[i] === best && best !== null && "better" },
          written(column, row),
          values[i] === best && best !== null && el("span", { class: "unseen" }, " (better)"),
        ),
      ),
    );
  };
  return el(
    "section",
    { class: "pair", "aria-label": "Beside each other" },
    el(
      "div",
      { class: "controls" },
      el("h2", {}, "Beside each other"),
      el("span", { class: "stretch" }),
      el("button", { type: "button", class: "button wide quiet", onclick: () => go({ ...route, rows: [] }) }, "Close"),
    ),
    chosen.length < 2 && el("p", { class: "soft" }, "Choose another row below."),
    el(
      "div",
      { class: "scroll", tabindex: 0, role: "region", "aria-label": "Figures of the chosen rows" },
      el(
        "table",
        {},
        el(
          "tbody",
          {},
          [
            ...columns.filter(({ key }) => key === "name"),
            ...columns.filter(({ key }) => key !== "name"),
            ...detailsOf(chosen, columns),
          ].map(line),
        ),
      ),
    ),
  );
}

function written(column, row) {
  const value = column.value(row);
  if (value === null || value === undefined) return MISSING;
  return [
    column.write ? column.write(value) : String(value),
    column.also && el("small", { class: "soft" }, ` ${column.also(row)}`),
  ];
}

function columnsOf({ rows, measure, knn }) {
  const ci = (name) => (row) => row.metrics[`${name}_ci95`]?.map(fixed(3)).join("–") ?? "";
  return [
    { key: "extractor", title: "Extractor", value: (row) => row.title || row.extractor, left: true },
    { key: "name", title: "Combination", value: (row) => row.name, left: true },
    { key: "measure", title: measure, value: (row) => row.metrics[measure], write: fixed(4), also: ci(measure) },
    { key: "knn", title: knn, value: (row) => row.metrics[knn], write: fixed(4) },
    { key: "memory", title: "memory/item", value: (row) => row.bytes.memory_per_item, write: bytes, up: true },
    { key: "disk", title: "disk/item", value: (row) => row.bytes.disk_per_item, write: bytes, up: true },
    { key: "p50", title: "p50 ms", value: (row) => row.latency_ms.p50, write: fixed(2), up: true },
    { key: "qps", title: "QPS", value: (row) => row.qps, write: fixed(0) },
  ].filter(({ value }) => rows.some((row) => value(row) !== undefined && value(row) !== null));
}

/** What two rows beside each other show beyond the table: every other figure that they have. */
function detailsOf(rows, columns) {
  const titles = new Set(columns.map(({ title }) => title));
  const shown = /^(memory_per_item|disk_per_item|p50)$|_(min|max|observed)$/;
  const parts = [
    ["metrics", fixed(4), false],
    ["bytes", size, true],
    ["latency_ms", fixed(2), true],
    ["seconds", fixed(2), true],
  ];
  return parts.flatMap(([part, write, up]) => {
    const names = new Set(
      rows.flatMap((row) =>
        Object.entries(row[part] ?? {})
          .filter(([, value]) => typeof value === "number")
          .map(([name]) => name),
      ),
    );
    return [...names]
      .filter((name) => !shown.test(name) && !titles.has(name))
      .map((name) => ({
        key: name,
        title: part === "seconds" ? `${name} s` : name.replaceAll("_", " "),
        value: (row) => row[part]?.[name],
        write,
        up,
      }));
  });
}
