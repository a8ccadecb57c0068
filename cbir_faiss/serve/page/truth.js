/* What is nearest by floats, and how much of it was found. */

/** So many times k are asked of the exact search, to see what is as near as the last one. */
export const TIES = 2;

/** Of exact `hits` the `k` nearest, and whatever is as near as the last of them. */
export function truthOf(hits, k) {
  const limit = hits[Math.min(k, hits.length) - 1]?.distance;
  return { nearest: hits.slice(0, k), near: new Set(hits.filter((hit) => hit.distance <= limit).map((hit) => hit.id)) };
}

/** How much of the truth is among `hits`. What is as near as the last of it counts as well. */
export function scored(hits, { nearest, near }) {
  const found = new Set(hits.map((hit) => hit.id));
  const right = Math.min(nearest.length, hits.filter((hit) => near.has(hit.id)).length);
  return {
    recall: nearest.length ? right / nearest.length : 1,
    wrong: hits.filter((hit) => !near.has(hit.id)),
    missed: nearest.filter((hit) => !found.has(hit.id)).slice(0, nearest.length - right),
  };
}
