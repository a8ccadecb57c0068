/* Elements without markup in strings, and what is said to people who do not see the page. */

const SVG = "http://www.w3.org/2000/svg";
const ICONS = {
  add: "M12 5v14M5 12h14",
  back: "M15 5l-7 7 7 7",
  close: "M6 6l12 12M18 6L6 18",
  filter: "M4 6h16M7 12h10M10 18h4",
  forward: "M9 5l7 7-7 7",
  help: "M9.2 9a3 3 0 1 1 4 2.8c-.8.4-1.2 1-1.2 2v.4M12 17.6v.1",
  like: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM16 16l4.5 4.5",
  photo: "M4 7h4l1.5-2h5L16 7h4v12H4zM12 9.5a3.3 3.3 0 1 0 0 6.6 3.3 3.3 0 0 0 0-6.6z",
  sides: "M4 5h7v14H4zM13 5h7v14h-7z",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  unlike: "M5 12h14",
};

/** A new element. Attributes by name, handlers as `onclick`; what is undefined, null or false is left out. */
export function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean" && name in made) made[name] = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...present(children));
  return made;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** A button with a picture; its words are for the tip and for screen readers, or stand beside it. */
export function button(name, words, onclick, { wide = false, ...props } = {}) {
  const told = wide ? {} : { "aria-label": words, title: words };
  const kind = ["button", wide ? "wide" : "round", props.class].filter(Boolean).join(" ");
  return el(
    "button",
    { type: "button", onclick, ...told, ...props, class: kind },
    name && icon(name),
    wide && el("span", {}, words),
  );
}

let composing = null; // the field in which an input method makes a word of letters
document.addEventListener("compositionstart", ({ target }) => (composing = target), true);
document.addEventListener("compositionend", () => (composing = null), true);

/** Put `children` into `host`; what had the focus, by its data-key, keeps it, with what was being written. A word that is
 *  being composed would be lost, so that is waited for. */
export function fill(host, ...children) {
  const before = host.contains(document.activeElement) ? document.activeElement : null;
  if (before && before === composing)
    return before.addEventListener("compositionend", () => fill(host, ...children), { once: true });
  host.replaceChildren(...present(children));
  const same = (one) => one.dataset.key === before?.dataset.key;
  const instead = before?.matches(".photo") ? host.querySelector(".photo") : null;
  const after = [...host.querySelectorAll("[data-key]")].find(same) ?? instead;
  if (!after) return;
  after.focus();
  if (typeof before.selectionStart !== "number") return;
  if (before.value !== before.defaultValue) after.value = before.value;
  after.setSelectionRange(before.selectionStart, before.selectionEnd);
}

let lastSaid = "";
/** Have a screen reader say it. */
export function say(words) {
  lastSaid = words === lastSaid ? `${words}\u00a0` : words; // the same words twice are news only if they differ
  document.getElementById("said").textContent = lastSaid;
}

/** An error in its place: what is wrong, what to do, and a way to try again. */
export function problem(error, again) {
  return el(
    "div",
    { class: "notice bad", role: "alert" },
    el(
      "p",
      {},
      el("strong", {}, error.title ?? "This did not work"),
      error.message && ` ${error.message[0].toUpperCase()}${error.message.slice(1)}`,
    ),
    again && button(null, "Try again", again, { wide: true }),
  );
}

/** A dialog that is gone when it is closed; Escape and a click beside it close it. */
export function dialog(kind, label, ...children) {
  const made = el("dialog", { class: kind, "aria-label": label }, ...children);
  made.addEventListener("click", (event) => event.target === made && outside(event, made) && made.close());
  made.addEventListener("close", () => made.remove());
  document.body.append(made);
  made.showModal();
  return made;
}

function outside({ clientX: x, clientY: y }, box) {
  const { left, right, top, bottom } = box.getBoundingClientRect();
  return x < left || x > right || y < top || y > bottom;
}

const present = (children) =>
  children.flat(Infinity).filter((child) => child !== undefined && child !== null && child !== false && child !== "");
