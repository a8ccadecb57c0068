/* The page: a header, the view of the link, and one item over it. */

import * as api from "./api.js";
import { Compare } from "./compare.js";
import { button, el, fill, problem, say } from "./dom.js";
import { Duplicates } from "./duplicates.js";
import { help, listen } from "./keys.js";
import { Lightbox } from "./lightbox.js";
import { Plane } from "./map.js";
import { Photos } from "./photos.js";
import { searchWith } from "./querybar.js";
import { go, link, queryOf, read } from "./route.js";
import { Run, Runs } from "./runs.js";
import { begin, infoOf, session } from "./session.js";
import { State } from "./state.js";

const SHOWN = {
  photos: [Photos, "Photos"],
  compare: [Compare, "Side by side"],
  duplicates: [Duplicates, "Duplicates"],
  map: [Plane, "Map"],
  state: [State, "State"],
  runs: [Runs, "Runs"],
  run: [Run, "Run"],
};
const LOOK_AGAIN = 2000; // milliseconds, while the server does not answer

const main = document.getElementById("main");
const lightbox = new Lightbox();
const sign = el("img", { src: "icon.svg", alt: "", width: 24, height: 24 });
let current = null; // {place, state, view}: where we are, all of the link but what is open over it, what shows it
let moves = 0;

/** Show what the link says. A view stays while its collection and kind do, so that it keeps what is scrolled and written. */
async function show({ again = false } = {}) {
  const move = ++moves;
  const route = complete(read());
  header(route);
  if (route.item === null) lightbox.leave();
  main.setAttribute("aria-busy", "true");
  try {
    const info = route.kind === "c" ? await infoOf(route.name) : null;
    if (move !== moves) return;
    const [Kind, title] = SHOWN[route.view];
    document.title = [title === "Photos" ? null : title, route.name, "cbir"].filter(Boolean).join(" · ");
    const place = `${route.kind}/${route.view}/${route.name}`;
    if (current?.place !== place) open(place, new Kind(info));
    const state = link({ ...route, item: null });
    if (again || current.state !== state) {
      current.state = state;
      await current.view.update({ ...route, item: null });
      if (move === moves) scrollTo(0, history.state?.y ?? 0);
    }
    if (move === moves) lightbox.update(route, current.view, info);
  } catch (error) {
    if (move !== moves) return;
    close();
    fill(
      main,
      problem(error, () => start()),
    );
  } finally {
    if (move === moves) main.removeAttribute("aria-busy");
  }
}

function open(place, view) {
  close();
  current = { place, view, state: null };
  fill(main, view.element);
}

function close() {
  current?.view.close();
  current = null;
}

/** Without a name it is the first collection, or the runs where there is none. */
function complete(route) {
  if (route.kind === "runs" || route.name) return route;
  const first = session.collections[0];
  return first ? { ...route, name: first.name } : { ...route, kind: "runs", view: "runs" };
}

function header(route) {
  const { collections, runs, unlisted } = session;
  const name = route.kind === "c" ? route.name : (collections[0]?.name ?? "");
  const query = route.kind === "c" ? { ...queryOf(route), filter: route.filter, where: route.where } : {};
  const tab = (view, words) => {
    const target =
      view === "runs"
        ? link({ kind: "runs" })
        : link({ kind: "c", name, view, ...(["photos", "compare"].includes(view) ? query : {}) });
    const here = route.view === view || (view === "runs" && route.view === "run");
    return el("a", { href: target, "aria-current": here && "page", "data-key": `tab ${view}` }, words);
  };
  const tabs = [
    ...(collections.length ? Object.keys(SHOWN).slice(0, 5) : []),
    ...(runs.length || unlisted || !collections.length ? ["runs"] : []),
  ];
  fill(
    document.getElementById("top"),
    el(
      "a",
      {
        class: "brand",
        href: collections.length ? link({ kind: "c", name, view: "photos" }) : link({ kind: "runs" }),
        "aria-label": "cbir, all photos",
        "data-key": "brand",
      },
      sign,
    ),
    collections.length > 1 && collectionOf(collections, name),
    collections.length === 1 && el("span", { class: "name", title: name }, name),
    el(
      "nav",
      { "aria-label": "Views" },
      tabs.map((view) => tab(view, SHOWN[view][1])),
    ),
    button("help", "Keys (?)", help, { "data-key": "help" }),
  );
  const here = document.querySelector("nav [aria-current]");
  if (here) here.parentElement.scrollLeft = here.offsetLeft - here.parentElement.offsetLeft - 40; // on a phone not all are in sight
}

const collectionOf = (collections, name) =>
  el(
    "select",
    {
      class: "name",
      "aria-label": "Collection",
      "data-key": "collection",
      onchange: (event) =>
        go({
          kind: "c",
          name: event.target.value,
          view: read().kind === "c" ? read().view : "photos",
          photo: read().photo ?? [],
          text: read().text,
        }),
    },
    collections.map((one) => el("option", { value: one.name, selected: one.name === name }, one.name)),
  );

// -- moving about

function leave() {
  history.replaceState({ ...history.state, y: scrollY }, "");
}

function click(event) {
  const anchor = event.target.closest("a[href^='#']");
  if (!anchor || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  if (anchor.classList.contains("skip")) main.focus();
  else go(read(anchor.getAttribute("href")));
}

// -- photos from outside

const files = (transfer) => [...(transfer?.files ?? [])];

function drops() {
  const zone = document.getElementById("drop");
  const carries = (event) => event.dataTransfer?.types.includes("Files");
  const hide = () => (zone.hidden = true);
  addEventListener("dragover", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    zone.hidden = false;
  });
  addEventListener("dragleave", (event) => event.relatedTarget ?? hide());
  addEventListener("drop", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    hide();
    take(files(event.dataTransfer), event.shiftKey);
  });
  addEventListener("paste", (event) => files(event.clipboardData).length && take(files(event.clipboardData), false));
}

function take(pictures, add) {
  if (read().kind !== "c" && session.collections.length === 0) return;
  if (!pictures.length) return;
  searchWith(pictures, { add });
}

// -- a server that goes away

function watch() {
  const banner = document.getElementById("banner");
  let waiting = 0;
  const look = async () => {
    if (await api.alive()) return;
    waiting = setTimeout(look, LOOK_AGAIN);
  };
  api.connection.addEventListener("lost", () => {
    fill(
      banner,
      el("span", {}, el("b", {}, "The server does not answer."), " This page goes on as soon as it is back."),
      button(null, "Try now", look, { wide: true }),
    );
    banner.hidden = false;
    waiting = setTimeout(look, LOOK_AGAIN);
  });
  api.connection.addEventListener("found", () => {
    clearTimeout(waiting);
    banner.hidden = true;
    say("The server is back.");
    start();
  });
}

async function start() {
  try {
    await begin();
  } catch (error) {
    return fill(
      main,
      problem(error, () => start()),
    );
  }
  session.infos.clear();
  return show({ again: true });
}

history.scrollRestoration = "manual";
addEventListener("popstate", () => show());
addEventListener("moved", () => show());
addEventListener("changed", () => {
  close();
  show();
});
addEventListener("pagehide", leave);
document.addEventListener("click", click);
listen(() => current?.view);
drops();
watch();
start();
