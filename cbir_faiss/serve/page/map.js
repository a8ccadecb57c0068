/* All items on a plane, of two principal axes or by UMAP; those inside a line drawn by hand are shown below it. */

import * as api from "./api.js";
import { button, el, fill, problem, say } from "./dom.js";
import { Grid, listed } from "./grid.js";
import { asked, go } from "./route.js";
import { picture, tile } from "./tile.js";
import { View } from "./view.js";
import { count, labelOf, several } from "./words.js";

const POINTS = 100_000;
const NEAR = 12; // pixels from the pointer at which a point is meant
const CORNERS = 60; // of a lasso, in a link
const MOST_SOUGHT = 20;
const COLOURS = [
  "#2f7fd1",
  "#e08a00",
  "#109c6e",
  "#d4609f",
  "#8b6fd0",
  "#d2502f",
  "#35aabf",
  "#a59a1f",
  "#a3623a",
  "#7d8794",
]; // one a label

export class Plane extends View {
  constructor(info) {
    super();
    this.info = info;
    this.canvas = el("canvas", { tabindex: 0, role: "img", "aria-label": "Map of the collection" });
    this.tip = el("div", { class: "tip", hidden: true });
    this.told = el("p", { class: "told", role: "status" });
    this.legend = el("ul", { class: "labels", role: "list", "aria-label": "Labels" });
    this.notice = el("div");
    this.lassoing = button(null, "Lasso", () => this.mode(!this.lasso), { wide: true, "aria-pressed": "true" });
    this.lasso = true;
    this.how = el("span", { class: "soft" });
    const tools = el(
      "div",
      { class: "controls" },
      this.lassoing,
      button("add", "Larger (+)", () => this.zoom(1.5)),
      button("unlike", "Smaller (-)", () => this.zoom(1 / 1.5)),
      button(null, "All of it", () => this.fit(), { wide: true, class: "quiet" }),
      el(
        "span",
        { class: "soft" },
        "Draw around points to see their photos. The arrows move, + and - zoom, Enter takes what is in sight.",
      ),
      this.how,
    );
    this.grid = new Grid((item) => tile(item, this.route, { pixels: this.grid.side, far: "" }), {
      label: "Photos inside the lasso",
    });
    this.search = el("div", { class: "controls" });
    this.element = el(
      "div",
      { class: "map" },
      el("h1", {}, "Map"),
      tools,
      el("div", { class: "plane" }, this.canvas, this.tip),
      this.legend,
      this.notice,
      this.told,
      this.search,
      this.grid.element,
    );
    this.points = { ids: [], x: [], y: [], label: [], order: [] };
    this.inside = [];
    this.drawn = [];
    this.view = { x: 0, y: 0, scale: 1 };
    this.wider = 1;
    this.watch = new ResizeObserver(() => this.resize());
    this.watch.observe(this.canvas);
    this.dark = matchMedia("(prefers-color-scheme: dark)");
    this.dark.onchange = () => this.draw();
    this.listen();
  }

  async update(route) {
    const signal = this.begin();
    this.route = route;
    try {
      if (!this.points.ids.length) this.load(await api.map(route.name, POINTS, signal));
      if (signal.aborted) return;
      fill(this.notice);
      this.take(polygonOf(route.lasso));
    } catch (error) {
      if (!signal.aborted)
        fill(
          this.notice,
          problem(error, () => this.update(route)),
        );
    }
  }

  load({ ids, x, y, labels, label, how }) {
    const order = [...ids.keys()].sort((a, b) => label[a] - label[b]); // so that a colour is taken up once
    this.points = { ids, x: Float32Array.from(x), y: Float32Array.from(y), label, order };
    fill(
      this.legend,
      labels.map((name, i) => el("li", {}, swatch(COLOURS[i]), labelOf(name) || "none")),
      labels.length > 0 && label.includes(-1) && el("li", {}, swatch(""), "others"),
    );
    const by = how === "umap" ? "UMAP" : "two principal axes";
    this.canvas.setAttribute("aria-label", `Map of ${several(ids.length, "item")} by ${by}`);
    fill(this.how, `By ${by}.`);
    this.fit();
  }

  // -- the plane: screen = (data - view) * scale + middle; a wide one shows its first axis wider

  resize() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width) return;
    this.width = width;
    this.height = height;
    this.canvas.width = width * devicePixelRatio;
    this.canvas.height = height * devicePixelRatio;
    this.fitted ? this.draw() : this.fit();
  }

  fit() {
    const { ids, x, y } = this.points;
    if (!ids.length || !this.width) return;
    const [left, right] = limits(x);
    const [low, high] = limits(y);
    this.view = { x: (left + right) / 2, y: (low + high) / 2, scale: (0.92 * this.height) / (high - low || 1) };
    this.wider = (0.92 * this.width) / (right - left || 1) / this.view.scale;
    this.fitted = true;
    this.draw();
  }

  zoom(by, px = this.width / 2, py = this.height / 2) {
    const [x, y] = this.data(px, py);
    this.view.scale *= by;
    const [nowX, nowY] = this.data(px, py);
    this.view.x += x - nowX;
    this.view.y += y - nowY;
    this.draw();
  }

  move(px, py) {
    this.view.x -= px / this.view.scale / this.wider;
    this.view.y += py / this.view.scale;
    this.draw();
  }

  screen = (x, y) => [
    (x - this.view.x) * this.view.scale * this.wider + this.width / 2,
    this.height / 2 - (y - this.view.y) * this.view.scale,
  ];
  data = (px, py) => [
    (px - this.width / 2) / this.view.scale / this.wider + this.view.x,
    (this.height / 2 - py) / this.view.scale + this.view.y,
  ];

  draw() {
    if (this.asked) return;
    this.asked = requestAnimationFrame(() => {
      this.asked = 0;
      this.paint();
    });
  }

  paint() {
    if (!this.width) return;
    const style = getComputedStyle(this.canvas);
    const ink = (name) => style.getPropertyValue(name).trim();
    const pen = this.canvas.getContext("2d");
    pen.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    pen.clearRect(0, 0, this.width, this.height);
    const { ids, x, y, label, order } = this.points;
    const side = ids.length > 20_000 ? 2 : ids.length > 2_000 ? 3 : 5;
    const chosen = new Set(this.inside);
    pen.fillStyle = ink("--soft");
    let colour = -1;
    for (const i of order) {
      if (label[i] !== colour) pen.fillStyle = COLOURS[(colour = label[i])];
      pen.globalAlpha = !chosen.size ? 0.85 : chosen.has(i) ? 1 : 0.15;
      const [px, py] = this.screen(x[i], y[i]);
      if (px > -side && py > -side && px < this.width + side && py < this.height + side)
        pen.fillRect(px - side / 2, py - side / 2, side, side);
    }
    pen.globalAlpha = 1;
    const line = this.drawn.length ? this.drawn.map(([a, b]) => this.screen(a, b)) : [];
    if (line.length < 2) return;
    pen.beginPath();
    line.forEach(([px, py], i) => (i ? pen.lineTo(px, py) : pen.moveTo(px, py)));
    pen.closePath();
    pen.lineWidth = 1.5;
    pen.strokeStyle = ink("--accent");
    pen.stroke();
    pen.globalAlpha = 0.08;
    pen.fillStyle = ink("--accent");
    pen.fill();
    pen.globalAlpha = 1;
  }

  // -- hands

  listen() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.moved(event));
    canvas.addEventListener("pointerup", () => this.up());
    canvas.addEventListener("pointercancel", () => (this.grip = null));
    canvas.addEventListener("pointerleave", () => (this.tip.hidden = true));
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    const pans = !this.lasso || event.shiftKey || event.button === 1;
    this.grip = { x: event.offsetX, y: event.offsetY, pans, far: 0 };
    this.tip.hidden = true;
    if (!pans) this.drawn = [this.data(event.offsetX, event.offsetY)];
  }

  moved(event) {
    const { offsetX: x, offsetY: y } = event;
    const { grip } = this;
    if (!grip) return this.hover(x, y);
    grip.far += Math.hypot(x - grip.x, y - grip.y);
    if (grip.pans) this.move(x - grip.x, y - grip.y);
    else this.drawn.push(this.data(x, y));
    Object.assign(grip, { x, y });
    this.draw();
  }

  up() {
    const { grip } = this;
    this.grip = null;
    if (!grip) return;
    if (grip.far < 4) return this.click(grip);
    if (!grip.pans) go({ ...this.route, lasso: written(thinned(this.drawn)), item: null });
  }

  click({ x, y }) {
    this.drawn = polygonOf(this.route.lasso);
    const near = this.nearest(x, y);
    if (near >= 0) go({ ...this.route, item: this.points.ids[near] });
    else if (this.route.lasso) go({ ...this.route, lasso: "" });
    else this.draw();
  }

  wheel(event) {
    event.preventDefault();
    this.zoom(Math.exp(-event.deltaY / 300), event.offsetX, event.offsetY);
  }

  key(event) {
    const step = 60;
    const does = {
      ArrowLeft: () => this.move(step, 0),
      ArrowRight: () => this.move(-step, 0),
      ArrowUp: () => this.move(0, step),
      ArrowDown: () => this.move(0, -step),
      "+": () => this.zoom(1.5),
      "=": () => this.zoom(1.5),
      "-": () => this.zoom(1 / 1.5),
      0: () => this.fit(),
      Enter: () => this.inSight(),
    }[event.key];
    if (!does || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    does();
  }

  /** What is in sight, as a lasso: for hands that draw nothing. */
  inSight() {
    const corners = [
      [0, 0],
      [this.width, 0],
      [this.width, this.height],
      [0, this.height],
    ];
    go({ ...this.route, lasso: written(corners.map(([x, y]) => this.data(x, y))), item: null });
  }

  mode(lasso) {
    this.lasso = lasso;
    this.lassoing.setAttribute("aria-pressed", lasso);
    this.canvas.classList.toggle("pans", !lasso);
  }

  hover(px, py) {
    const near = this.nearest(px, py);
    this.tip.hidden = near < 0;
    if (near < 0 || near === this.shown) return;
    this.shown = near;
    const [x, y] = this.screen(this.points.x[near], this.points.y[near]);
    this.tip.style.transform = `translate(${Math.min(x + 12, this.width - 108)}px, ${Math.min(y + 12, this.height - 108)}px)`;
    fill(this.tip, picture(this.route.name, { id: this.points.ids[near] }, 96));
  }

  nearest(px, py) {
    let [best, least] = [-1, NEAR * NEAR];
    for (let i = 0; i < this.points.ids.length; i++) {
      const [x, y] = this.screen(this.points.x[i], this.points.y[i]);
      const far = (x - px) ** 2 + (y - py) ** 2;
      if (far < least) [best, least] = [i, far];
    }
    return best;
  }

  // -- results

  take(polygon) {
    this.drawn = polygon;
    const { ids, x, y } = this.points;
    this.inside = polygon.length > 2 ? [...ids.keys()].filter((i) => within(polygon, x[i], y[i])) : [];
    const items = this.inside.map((i) => ({ id: ids[i], path: "" }));
    const shown =
      ids.length < this.info.items
        ? `${several(ids.length, "item")} of ${count(this.info.items)}, taken at random`
        : several(ids.length, "item");
    fill(
      this.told,
      polygon.length
        ? [el("b", {}, several(items.length, "photo")), " inside the lasso"]
        : el("span", { class: "soft" }, shown),
    );
    const sought = items.slice(0, MOST_SOUGHT).map(({ id }) => id);
    const words =
      items.length > MOST_SOUGHT ? `Search with the first ${MOST_SOUGHT} together` : "Search with all of them together";
    fill(
      this.search,
      items.length > 0 &&
        button("like", words, () => go({ ...asked(this.route, { like: sought }), view: "photos", lasso: "" }), {
          wide: true,
        }),
      polygon.length > 0 &&
        button(null, "Remove the lasso", () => go({ ...this.route, lasso: "" }), { wide: true, class: "quiet" }),
    );
    this.grid.show(listed(items));
    this.draw();
    say(polygon.length ? `${several(items.length, "photo")} inside the lasso` : shown);
  }

  beside(id, step) {
    const place = this.grid.source.find(id);
    return place < 0 ? null : this.grid.source.at(place + step);
  }

  close() {
    super.close();
    this.watch.disconnect();
    this.dark.onchange = null;
    this.grid.close();
  }
}

function swatch(colour) {
  const made = el("i", { "aria-hidden": "true" });
  made.style.background = colour;
  return made;
}

const limits = (values) =>
  values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);

/** Whether a point is inside a closed line: a ray from it crosses the line an odd number of times. */
function within(polygon, x, y) {
  let inside = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [[ax, ay], [bx, by]] = [polygon[i], polygon[j]];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) inside = !inside;
  }
  return inside;
}

const thinned = (line) => line.filter((_, i) => i % Math.ceil(line.length / CORNERS) === 0);
const written = (line) => line.map((point) => point.map((value) => Number(value.toPrecision(4))).join(" ")).join(",");
const polygonOf = (text) =>
  text
    .split(",")
    .map((point) => point.split(" ").map(Number))
    .filter((point) => point.length === 2 && point.every(Number.isFinite));
