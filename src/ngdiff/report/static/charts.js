"use strict";
// A chart is a figure with a caption, a legend, a drawing (an image to a screen reader, with a label that says
// what it shows) and the numbers as a table. Drawings are made when they come near the screen.
const STYLES = {
  forget: { color: "var(--forget)", dash: null, symbol: "circle" },
  retain: { color: "var(--retain)", dash: "7 3", symbol: "square" },
  other: { color: "var(--other)", dash: "2 3", symbol: "triangle" },
  ref: { color: "var(--ref)", dash: "9 3 2 3", symbol: "diamond2" },
  before: { color: "var(--before)", dash: "4 4", symbol: "times" },
};
const MOST_ROWS = 500;
const DOTS = 60;
const drawings = new Set();

const near = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting).forEach(({ target }) => {
    near.unobserve(target);
    if (target.painted === undefined) target.paint();
  }),
  { rootMargin: "500px" },
);
const sized = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (target.painted !== undefined && Math.abs(target.painted - target.clientWidth) > 8) target.paint();
  }
});
window.addEventListener("beforeprint", () => drawings.forEach((drawing) => drawing.painted === undefined && drawing.paint()));

/** Return a figure; `draw(width)` gives its drawing, `table()` its {head, rows}. */
function chart({ title, unit = "", legend = [], label, draw, table, after = null }) {
  const drawing = el("div", { class: "plot", role: "img", "aria-label": label });
  drawing.paint = () => {
    drawing.painted = drawing.clientWidth;
    drawing.replaceChildren(draw(Math.max(240, drawing.clientWidth)));
  };
  drawings.add(drawing);
  near.observe(drawing);
  sized.observe(drawing);
  const caption = el("figcaption", {}, title, unit ? el("p", { class: "unit" }, unit) : null);
  return el("figure", { class: "chart" }, caption, legendOf(legend), drawing, after, numbers(title, table));
}

function legendOf(entries) {
  if (entries.length === 0) return null;
  return el("ul", { class: "legend" }, entries.map(({ label, style, line = true, point = false }) =>
    el("li", {}, swatch(style, line, point), label)));
}

function swatch(style, line, point) {
  const node = document.createElementNS(SVG, "svg");
  const attributes = { width: 26, height: 12, "aria-hidden": "true", viewBox: "0 0 26 12" };
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (line) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", "M0 6H26");
    path.setAttribute("stroke", style.color);
    path.setAttribute("stroke-width", style.width || 2);
    if (style.dash) path.setAttribute("stroke-dasharray", style.dash);
    node.append(path);
  }
  if (point) {
    const mark = document.createElementNS(SVG, "path");
    mark.setAttribute("d", d3.symbol(SYMBOLS[style.symbol], 42)());
    mark.setAttribute("transform", "translate(13,6)");
    mark.setAttribute("fill", style.symbol === "times" ? "none" : style.color);
    mark.setAttribute("stroke", style.color);
    mark.setAttribute("stroke-width", 1.5);
    node.append(mark);
  }
  return node;
}

const SYMBOLS = {
  circle: d3.symbolCircle, square: d3.symbolSquare, triangle: d3.symbolTriangle, diamond2: d3.symbolDiamond2,
  times: d3.symbolTimes, star: d3.symbolStar, cross: d3.symbolCross, hexagon: d3.symbolCircle,
};

/** Return the numbers behind a drawing, made when they are asked for. */
function numbers(title, table) {
  const place = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Numbers: ${title}` });
  const fold = el("details", { class: "numbers" }, el("summary", {}, "Numbers"), place);
  fold.addEventListener("toggle", () => {
    if (!fold.open || place.childElementCount) return;
    const { head, rows } = table();
    const body = rows.slice(0, MOST_ROWS).map((row) => el("tr", {}, row.map((cell, column) => column === 0
      ? el("th", { scope: "row" }, cellText(cell))
      : el("td", { class: "number" }, cellText(cell)))));
    place.append(el("table", {},
      el("thead", {}, el("tr", {}, head.map((name, column) => el("th", { scope: "col", class: column ? "number" : null }, name)))),
      el("tbody", {}, body)));
    if (rows.length > MOST_ROWS) place.append(el("p", { class: "hint" }, `${rows.length - MOST_ROWS} more rows are in record.json.`));
  });
  return fold;
}

function cellText(cell) {
  return typeof cell === "number" ? (Number.isInteger(cell) ? String(cell) : digits(cell, 4)) : plain(cell ?? "–");
}

/** Draw with the settings that all charts share. */
function plot(width, options) {
  const drawn = Plot.plot({
    width, height: Math.round(Math.min(270, Math.max(190, width * 0.5))), marginLeft: 52, marginRight: 14, marginTop: 18, marginBottom: 36,
    style: { background: "transparent", color: "var(--ink)", fontSize: "12px" },
    ...options,
  });
  drawn.setAttribute("aria-hidden", "true");
  drawn.removeAttribute("tabindex");
  return drawn;
}

/** A vertical moment with its name. */
function moment(x, text, style, anchor = "end") {
  if (x === null || x === undefined) return [];
  return [
    Plot.ruleX([x], { stroke: style.color, strokeDasharray: style.dash, strokeWidth: 1.5 }),
    Plot.text([x], { x, frameAnchor: "top", dy: -14, text: [text], fill: style.color, textAnchor: anchor }),
  ];
}

function level(y, text, color) {
  return [
    Plot.ruleY([y], { stroke: color, strokeDasharray: "5 4", strokeWidth: 1.5 }),
    Plot.text([y], { y, frameAnchor: "right", dy: -7, dx: -3, text: [text], fill: color, textAnchor: "end", stroke: "var(--paper)", strokeWidth: 3 }),
  ];
}

/** One series: a line, and points where they are few. */
function series(points, style, label) {
  const marks = [Plot.line(points, { x: "x", y: "y", stroke: style.color, strokeDasharray: style.dash, strokeWidth: 2 })];
  if (points.length <= DOTS) {
    marks.push(Plot.dot(points, { x: "x", y: "y", stroke: style.color, fill: style.symbol === "times" ? "none" : style.color, symbol: style.symbol, r: 2.6 }));
  }
  return marks;
}

/** What a pointer reads; it must not catch clicks that are meant for the point below it. */
function tips(points) {
  return Plot.tip(points, Plot.pointerX({ x: "x", y: "y", title: "title", pointerEvents: "none", fill: "var(--paper)", stroke: "var(--line)" }));
}

/** Label a tick of a logarithmic axis. */
function power(value) {
  return d3.format(value >= 1e-3 && value < 1e4 ? "~g" : "~e")(value);
}

/** Return rows (x, one column a series) of several series. */
function joined(many) {
  const rows = new Map();
  many.forEach(({ points }, column) => points.forEach(({ x, y }) => {
    if (!rows.has(x)) rows.set(x, [x, ...many.map(() => null)]);
    rows.get(x)[column + 1] = y;
  }));
  return [...rows.values()].sort((a, b) => a[0] - b[0]);
}

function described(label, points) {
  if (points.length === 0) return `${label}: no values`;
  const values = points.map((point) => point.y);
  return `${label}: from ${digits(values[0])} to ${digits(values[values.length - 1])}, least ${digits(d3.min(values))}, most ${digits(d3.max(values))}`;
}
