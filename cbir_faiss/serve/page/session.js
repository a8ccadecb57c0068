/* What every view knows: which collections and runs are served, and what is known of each. */

import * as api from "./api.js";

export const session = { collections: [], runs: [], infos: new Map() };

export async function begin() {
  [session.collections, session.runs] = await Promise.all([api.collections(), api.runs()]);
}

/** What the server says of a collection, asked once until something changes. */
export async function infoOf(name) {
  if (!session.infos.has(name)) session.infos.set(name, await api.info(name));
  return session.infos.get(name);
}

export function changed(name) {
  session.infos.delete(name);
  api.forget();
}
