/* Filters with counts: each count is of what the other filters leave. */

import * as api from "./api.js";
import { button, el, fill } from "./dom.js";
import { go, whereOf } from "./route.js";
import { count } from "./words.js";

const FEW = 10;
const KNOWN = 100; // values of a field that the server tells, the most frequent

export class Filters {
  constructor() {
    this.wide = new Set(); // fields of which all values are shown
    this.found = new Map(); // what was written to find values of a field
    this.summary = el("summary", {}, "Filters");
    this.fields = el("div", { class: "fields" });
    this.element = el(
      "details",
      { class: "filters", open: matchMedia("(min-width: 900px)").matches },
      this.summary,
      this.fields,
    );
  }

  async update(route, signal) {
    try {
      this.known = await this.counted(route, signal);
    } catch {
      this.known ??= {}; // a filter that cannot be read is told with the results; here it can be mended
    }
    if (!signal.aborted) this.render(route, this.known);
  }

  async counted(route, signal) {
    const chosen = Object.keys(route.filter);
    const ask = (without) => api.facets(route.name, whereOf(route, without), signal);
    const [all, ...own] = await Promise.all([ask(), ...chosen.map(ask)]);
    return { ...all.fields, ...Object.fromEntries(chosen.map((field, i) => [field, own[i].fields[field] ?? []])) };
  }

  render(route, fields) {
    const active = Object.values(route.filter).flat().length + (route.where ? 1 : 0);
    fill(this.summary, "Filters", active > 0 && el("span", { class: "count" }, active));
    const names = Object.keys(fields);
    fill(
      this.fields,
      active > 0 &&
        el(
          "button",
          {
            type: "button",
            class: "button quiet",
            "data-key": "no filters",
            onclick: () => go({ ...route, filter: {}, where: "" }),
          },
          "Remove all filters",
        ),
      names.map((field) => this.field(route, field, fields)),
      names.length === 0 &&
        !active &&
        el("p", { class: "soft" }, "The items have no label and nothing else to filter by."),
      inWords(route),
    );
  }

  field(route, field, fields) {
    const chosen = route.filter[field] ?? [];
    const counted = fields[field];
    const known = new Set(counted.map(([value]) => JSON.stringify(value)));
    const values = [
      ...chosen.filter((value) => !known.has(JSON.stringify(value))).map((value) => [value, null]),
      ...counted,
    ];
    const again = () => this.render(route, fields);
    const find = this.found.get(field) ?? "";
    const fitting = values.filter(([value]) => String(value).toLowerCase().includes(find.toLowerCase()));
    const picked = ([value]) => chosen.some((one) => one === value);
    const ordered = [...fitting.filter(picked), ...fitting.filter((one) => !picked(one))];
    const shown = ordered.slice(0, this.wide.has(field) || find ? ordered.length : Math.max(FEW, chosen.length));
    const more = () => {
      this.wide.has(field) ? this.wide.delete(field) : this.wide.add(field);
      again();
    };
    const write = (event) => {
      this.found.set(field, event.target.value);
      again();
    };
    return el(
      "fieldset",
      {},
      el("legend", {}, field),
      values.length > FEW &&
        el("input", {
          type: "search",
          class: "find",
          placeholder:
            counted.length < KNOWN ? `Find among ${count(values.length)}` : `Find among the ${KNOWN} most frequent`,
          "aria-label": `Find values of ${field}`,
          value: find,
          oninput: write,
          "data-key": `find ${field}`,
        }),
      el(
        "div",
        { class: "values" },
        shown.map((one) => this.value(route, field, one, picked(one))),
      ),
      find && shown.length === 0 && el("p", { class: "soft" }, "Nothing fits."),
      !find &&
        values.length > FEW &&
        button(null, this.wide.has(field) ? "Fewer" : `All ${count(values.length)}`, more, {
          wide: true,
          class: "quiet",
          "data-key": `all ${field}`,
        }),
    );
  }

  value(route, field, [value, number], picked) {
    const pick = (event) => {
      const others = (route.filter[field] ?? []).filter((one) => one !== value);
      const filter = { ...route.filter, [field]: event.target.checked ? [...others, value] : others };
      if (!filter[field].length) delete filter[field];
      go({ ...route, filter, item: null });
    };
    const words = value === null ? "none" : String(value) || "(empty)";
    return el(
      "label",
      { class: "value", title: words },
      el("input", { type: "checkbox", checked: picked, onchange: pick, "data-key": JSON.stringify([field, value]) }),
      el("span", { class: "word" }, words),
      number !== null && el("span", { class: "soft" }, count(number)),
    );
  }
}

const inWords = (route) =>
  el(
    "form",
    {
      class: "words",
      onsubmit: (event) => {
        event.preventDefault();
        go({ ...route, where: event.target.elements.where.value.trim(), item: null });
      },
    },
    el(
      "label",
      {},
      "In words",
      el("input", {
        name: "where",
        type: "search",
        value: route.where,
        placeholder: 'year >= 1990 or not label = "cat"',
        "data-key": "where",
        autocomplete: "off",
        spellcheck: "false",
      }),
    ),
  );
