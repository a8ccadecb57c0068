/* The server's answers. An error is a Problem with a title and what to do; see docs/serve.md for the API. */

const BASE = "api/v1/";
const KEPT = 40; // answers that going back needs no request for
const FRESH = 60_000; // milliseconds; the collection may change
/** What an error is called; the server says what to do about it. */
const TITLES = {
  401: "This page has no access any more.",
  404: "That is not here.",
  413: "That is too large.",
  415: "That is no picture.",
  422: "That cannot be searched.",
  429: "Too much is being asked at once.",
  503: "Not ready.",
};

class Problem extends Error {
  constructor(status, title, detail) {
    super(detail);
    this.status = status;
    this.title = title;
  }
}

/** Tells "lost" when the server does not answer and "found" when it does again. */
export const connection = new EventTarget();
let answering = true;

/** Photos that were dropped here, by a name that a link can hold; they stay in this session. */
export const photos = new Map();

export function keepPhoto(file) {
  const name = `p${Date.now().toString(36)}${photos.size}`;
  photos.set(name, { file, name: file.name || "pasted photo", url: URL.createObjectURL(file) });
  return name;
}

async function request(path, options = {}) {
  const answer = await fetch(BASE + path, options).catch((error) => {
    if (error.name === "AbortError") throw error;
    heard(false);
    throw new Problem(0, "The server does not answer.", "It may have been stopped: start cbir serve again.");
  });
  heard(true);
  if (answer.status === 204) return null;
  const told = await answer.json().catch(() => ({}));
  if (answer.ok) return told;
  const detail = answer.status === 401 ? "Open the link that cbir serve printed." : (told.detail ?? answer.statusText);
  throw new Problem(answer.status, TITLES[answer.status] ?? "This did not work.", detail);
}

function heard(answers) {
  if (answers === answering) return;
  answering = answers;
  connection.dispatchEvent(new Event(answers ? "found" : "lost"));
}

/** Whether the server is there and ready. */
export async function alive() {
  const answer = await fetch("readyz").catch(() => null);
  if (answer?.ok) heard(true);
  return Boolean(answer?.ok);
}

const kept = new Map();

/** The answer to what was asked a moment ago, else a new one. */
async function remembered(key, ask) {
  const found = kept.get(key);
  if (found && Date.now() - found.at < FRESH) return found.answer;
  const answer = await ask();
  kept.delete(key);
  kept.set(key, { answer, at: Date.now() });
  if (kept.size > KEPT) kept.delete(kept.keys().next().value);
  return answer;
}

/** Forget answers: the collection has changed. */
export const forget = () => kept.clear();

const of = (name) => `collections/${encodeURIComponent(name)}`;
const query = (params) =>
  new URLSearchParams(
    Object.entries(params).filter(([, value]) => value !== "" && value !== null && value !== undefined),
  );
const get = (path, params = {}, signal) => {
  const asked = `${path}?${query(params)}`.replace(/\?$/, "");
  return remembered(asked, () => request(asked, { signal }));
};

export const collections = async () => (await request("collections")).collections;
export const info = (name) => request(of(name));
export const items = (name, params, signal) => get(`${of(name)}/items`, params, signal);
export const item = (name, id, signal) => get(`${of(name)}/items/${id}`, {}, signal);
export const facets = (name, where, signal) => get(`${of(name)}/facets`, { where }, signal);
export const duplicates = (name, radius, signal) => get(`${of(name)}/duplicates`, { radius }, signal);
export const map = (name, points, signal) => get(`${of(name)}/map`, { points }, signal);
export const runs = async () => (await request("runs")).runs;
export const run = (name, signal) => get(`runs/${encodeURIComponent(name)}`, {}, signal);
export const reportOf = (name) => `${BASE}runs/${encodeURIComponent(name)}/report`;

export const thumbOf = (name, id, size) => `${BASE}${of(name)}/items/${id}/thumb?size=${size}`;
export const imageOf = (name, id) => `${BASE}${of(name)}/items/${id}/image`;

export const remove = (name, id) => request(`${of(name)}/items/${id}`, { method: "DELETE" });

/** The hits of one query made of items (`like`), photos of this session, words and what it is not like. */
export function search(name, { like, photo, unlike = [], text = "" }, { k, where = "", rescore = null }, signal) {
  const parts = like.length + photo.length + (text ? 1 : 0);
  const combine = parts > 1 || unlike.length > 0; // one alone is searched by its code, which needs no floats
  const asked = { ids: like, text: text ? [text] : [], k, where: where || null, rescore, unlike, combine };
  const key = JSON.stringify([name, photo, asked]);
  return remembered(key, async () => {
    const answer = await request(`${of(name)}/search`, {
      method: "POST",
      signal,
      ...(photo.length ? form(asked, photo) : json(asked)),
    });
    return { hits: answer.results[0] ?? [], ms: answer.took_ms };
  });
}

/** The hits of each of some items. */
export async function searchEach(name, ids, { k, rescore = null }, signal) {
  return (await request(`${of(name)}/search`, { method: "POST", signal, ...json({ ids, k, rescore }) })).results;
}

const json = (asked) => ({ headers: { "Content-Type": "application/json" }, body: JSON.stringify(asked) });

function form(asked, names) {
  const body = new FormData();
  for (const name of names) body.append("image", photos.get(name).file);
  for (const [key, value] of Object.entries(asked)) {
    const empty = value === null || (Array.isArray(value) && !value.length);
    if (!empty) body.append(key, key === "where" ? value : JSON.stringify(value));
  }
  return { body };
}

/** The original of an item, as a photo to search another collection with. */
export async function photoOf(name, id, signal) {
  const key = `of:${name}:${id}`;
  if (!photos.has(key)) {
    const answer = await fetch(imageOf(name, id), { signal });
    if (!answer.ok)
      throw new Problem(
        answer.status,
        "The original is not there.",
        "Without it another collection cannot be searched for it.",
      );
    photos.set(key, { file: await answer.blob(), name: `item ${id}`, url: thumbOf(name, id, 128) });
  }
  return key;
}
