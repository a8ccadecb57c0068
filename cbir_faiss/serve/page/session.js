/* What every view knows: which collections and runs are served, and what is known of each. */

import * as api from "./api.js";

export const session = { collections: [], runs: [], unlisted: null, infos: new Map() };

/** Ask what is served. Photos are shown whatever the runs are: `unlisted` says why there is no list of them. */
export async function begin() {
  const listed = api.runs().then(
    (runs) => ({ runs, unlisted: null }),
    (unlisted) => ({ runs: [], unlisted }),
  );
  session.collections = await api.collections();
  Object.assign(session, await listed);
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
