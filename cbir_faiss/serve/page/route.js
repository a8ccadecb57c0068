/* A state of the page is a link: #/c/<collection>[/<view>]?… or #/runs[/<run>]?…
   It stays in the fragment, so no filter and no path is in a log. */

const numbers = {
  read: (text) =>
    text
      .split(",")
      .filter(Boolean)
      .map(Number)
      .filter((id) => Number.isSafeInteger(id) && id >= 0),
  write: (list) => list.join(","),
};
const words = { read: (text) => text.split(",").filter(Boolean), write: (list) => list.join(",") };
const text = { read: (value) => value, write: (value) => value };
const number = { read: (value) => (/^\d+$/.test(value) ? Number(value) : null), write: String };
const mapping = { read: readMapping, write: (value) => (Object.keys(value).length ? JSON.stringify(value) : "") };

/** What a link may hold: how it is read and written, and what it is when it is not there. */
const PARAMS = {
  like: [numbers, []], // items that the results are to be like
  photo: [words, []], // the same, photos of this session
  unlike: [numbers, []],
  text: [text, ""], // what is to be seen
  k: [number, null],
  filter: [mapping, {}], // {field: [values]}
  where: [text, ""], // a filter in words
  beside: [text, ""], // another collection
  radius: [number, null],
  lasso: [text, ""],
  find: [text, ""],
  sort: [text, ""],
  rows: [numbers, []],
  item: [number, null], // the item that is open
};

export const VIEWS = ["photos", "compare", "duplicates", "map", "state"];
const DEFAULTS = Object.fromEntries(Object.entries(PARAMS).map(([name, [, initial]]) => [name, initial]));

/** The state that a fragment describes; what cannot be read is left out. */
export function read(fragment = location.hash) {
  const [path, query = ""] = fragment.replace(/^#\/?/, "").split(/\?(.*)/s);
  const [kind, name = "", view = "photos"] = path.split("/").map(decoded);
  const route = { ...DEFAULTS, kind: kind === "runs" ? "runs" : "c", name, view };
  if (route.kind === "runs") route.view = name ? "run" : "runs";
  else if (!VIEWS.includes(view)) route.view = "photos";
  for (const [key, value] of new URLSearchParams(query)) if (key in PARAMS) route[key] = PARAMS[key][0].read(value);
  return route;
}

/** The link to a state. */
export function link(route) {
  const name = encodeURIComponent(route.name ?? "");
  const view = route.view === "photos" || !VIEWS.includes(route.view) ? "" : `/${route.view}`;
  const path = route.kind === "runs" ? `#/runs${name && `/${name}`}` : `#/c/${name}${view}`;
  const query = new URLSearchParams();
  for (const [key, [kind, initial]] of Object.entries(PARAMS)) {
    const written = kind.write(route[key] ?? initial ?? "");
    if (written !== "" && written !== "null") query.set(key, written);
  }
  const search = query.toString().replaceAll("%2C", ",");
  return search ? `${path}?${search}` : path;
}

/** Go to a state; `replace` where back should not lead to the one before. */
export function go(route, { replace = false } = {}) {
  if (replace || link(route) === location.hash) history.replaceState(history.state, "", link(route));
  else {
    history.replaceState({ ...history.state, y: scrollY }, ""); // for whoever comes back
    history.pushState({ inside: true }, "", link(route));
  }
  dispatchEvent(new Event("moved"));
}

export const isQuery = (route) => route.like.length + route.photo.length > 0 || route.text !== "";

/** What is searched for. */
export const queryOf = ({ like, photo, unlike, text }) => ({ like, photo, unlike, text });

/** `route` with other items as its query, from the top of the results. */
export const asked = (route, { like = [], photo = [], unlike = [], text = "" }) => ({
  ...route,
  kind: "c",
  name: route.kind === "c" ? route.name : "",
  view: route.view === "compare" ? "compare" : "photos",
  like,
  photo,
  unlike,
  text,
  item: null,
  lasso: "",
});

export const moreLike = (route, id) => asked(route, { like: [id] });
export const alsoLike = (route, id) =>
  asked(route, { ...route, like: [...new Set([...route.like, id])], unlike: route.unlike.filter((one) => one !== id) });
export const notLike = (route, id) =>
  asked(route, { ...route, unlike: [...new Set([...route.unlike, id])], like: route.like.filter((one) => one !== id) });

/** The filters of a state as the text that `cbir search --where` takes; of one field fewer, for that field's counts. */
export function whereOf(route, without) {
  const parts = Object.entries(route.filter)
    .filter(([field]) => field !== without)
    .map(
      ([field, values]) => `${JSON.stringify(field)} in (${values.map((value) => JSON.stringify(value)).join(", ")})`,
    );
  if (route.where) parts.push(parts.length ? `(${route.where})` : route.where);
  return parts.join(" and ");
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function readMapping(value) {
  try {
    const read = Object.entries(JSON.parse(value)).filter(([, values]) => Array.isArray(values) && values.length);
    return Object.fromEntries(read);
  } catch {
    return {};
  }
}
