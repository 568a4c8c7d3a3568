/** Line charts of the last minutes, drawn as SVG. */

import { element, svg } from "./dom.js";

const WIDTH = 100;
const HEIGHT = 100;
const COLOURS = 6;
/** Values further apart, in seconds, are not connected. */
const GAP_S = 5;
const colours = new Map();

/** Return the class of a series' colour: the same for a name in every chart. */
export function colourOf(name) {
  if (!colours.has(name)) colours.set(name, `series-${colours.size % COLOURS}`);
  return colours.get(name);
}

export class Chart {
  /**
   * @param {string} title
   * @param {(value: number) => string} format Of values.
   * @param {{seconds?: number, least?: number, shared?: boolean, axis?: (top: number) => string}}
   *   options Length of the axis of time; the least top of the axis of values; whether a series has
   *   its colour in other charts too; format of the top.
   */
  constructor(title, format, { seconds = 120, least = 0, shared = true, axis = plain } = {}) {
    this.title = title;
    this.format = format;
    this.axis = axis;
    this.seconds = seconds;
    this.least = least;
    this.colourOf = shared ? colourOf : () => "series-0";
    this.points = [];
    /** Time that the pointer is at, in seconds before the newest point; null without a pointer. */
    this.pointer = null;
    this.lines = svg("g");
    this.mark = svg("line", { class: "mark", y1: 0, y2: HEIGHT, hidden: true });
    this.picture = svg(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" },
      [0, HEIGHT / 2, HEIGHT].map((y) =>
        svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: y, y2: y }),
      ),
      this.mark,
      this.lines,
    );
    const plot = element("div", { class: "plot" }, this.picture);
    plot.addEventListener("pointermove", ({ offsetX }) => {
      this.pointer = this.seconds * (1 - offsetX / plot.clientWidth);
      this.draw();
    });
    plot.addEventListener("pointerleave", () => {
      this.pointer = null;
      this.draw();
    });
    this.most = element("span", { class: "most", "aria-hidden": "true" });
    plot.append(this.most);
    this.newest = element("span", { class: "newest" });
    this.element = element(
      "figure",
      { class: "chart" },
      element("figcaption", { class: "heading" }, element("h3", {}, title), this.newest),
      plot,
      element(
        "div",
        { class: "times", "aria-hidden": "true" },
        element("span", {}, `${seconds} s ago`),
        element("span", {}, "now"),
      ),
    );
    this.draw();
  }

  /** Forget all values. */
  clear() {
    this.points = [];
    this.draw();
  }

  /**
   * Add values and draw.
   * @param {number} time In seconds.
   * @param {Object<string, (number|null)[]>} values Of each series: of its line, and of a dashed
   *   second one; null is a gap.
   */
  add(time, values) {
    this.points.push({ time, values });
    while (this.points[0].time < time - this.seconds) this.points.shift();
    this.draw();
  }

  draw() {
    const shown = this.#pointed() ?? this.points.at(-1);
    const names = [...new Set(this.points.flatMap(({ values }) => Object.keys(values)))];
    const all = this.points.flatMap(({ values }) => Object.values(values).flat());
    const top = niceTop(Math.max(this.least, ...all.filter((value) => Number.isFinite(value))));
    this.most.textContent = all.length ? this.axis(top) : "";
    this.lines.replaceChildren(
      ...names.flatMap((name) =>
        [0, 1].map((index) => this.#line(name, index, top)).filter((line) => line !== null),
      ),
    );
    const texts = names
      .filter((name) => shown.values[name]?.some((value) => Number.isFinite(value)))
      .map((name) => [name, shown.values[name].map((value) => this.format(value)).join(" / ")]);
    this.newest.replaceChildren(
      ...texts.map(([name, text]) => element("span", { class: this.colourOf(name) }, text)),
    );
    const spoken = texts.map(([name, text]) => `${name} ${text}`).join(", ");
    this.picture.setAttribute("aria-label", `${this.title}: ${spoken || "no values yet"}`);
  }

  /** Return the point nearest to the pointer, and mark it; undefined without a pointer. */
  #pointed() {
    this.mark.toggleAttribute("hidden", this.pointer === null || this.points.length === 0);
    if (this.pointer === null || this.points.length === 0) return undefined;
    const now = this.points.at(-1).time;
    const distance = ({ time }) => Math.abs(now - time - this.pointer);
    const nearest = this.points.reduce((a, b) => (distance(b) < distance(a) ? b : a));
    const x = WIDTH * (1 - (now - nearest.time) / this.seconds);
    for (const end of ["x1", "x2"]) this.mark.setAttribute(end, x);
    return nearest;
  }

  #line(name, index, top) {
    const now = this.points.at(-1).time;
    let path = "";
    let pen = "M";
    let previous = now;
    for (const { time, values } of this.points) {
      const value = values[name]?.[index];
      if (time - previous > GAP_S) pen = "M";
      previous = time;
      if (!Number.isFinite(value)) {
        pen = "M";
        continue;
      }
      const x = WIDTH * (1 - (now - time) / this.seconds);
      const y = HEIGHT * (1 - value / top);
      // A value between gaps is a dot: a line without length, with round ends.
      path += `${pen}${x.toFixed(2)} ${y.toFixed(2)}${pen === "M" ? "h0" : ""}`;
      pen = "L";
    }
    if (path === "") return null;
    return svg("path", { d: path, class: `${this.colourOf(name)}${index ? " second" : ""}` });
  }
}

function plain(top) {
  return top.toLocaleString("en");
}

/** Return 1, 2 or 5 times a power of ten that is at least a value. */
function niceTop(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((factor) => factor * power).find((top) => top >= value);
}
