"use strict";
// Text from data and models reaches the page as text nodes only: nothing here parses HTML.
const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

/** Make an element; `on...` properties are listeners, null ones are left out, strings become text. */
function el(tag, properties, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

function byId(id) {
  return document.getElementById(id);
}

/** Tell a screen reader. */
function say(text) {
  byId("said").textContent = text;
}

// The same characters as in ngdiff/report/text.py; see a test there.
const INVISIBLE = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]|[\ud800-\udfff]/gu;

function codePoint(character) {
  return "U+" + character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
}

/** Return text as nodes in which invisible characters are written out. */
function shown(text) {
  const nodes = [];
  let last = 0;
  for (const found of text.matchAll(INVISIBLE)) {
    if (found.index > last) nodes.push(text.slice(last, found.index));
    nodes.push(el("span", { class: "raw", title: "an invisible character" }, codePoint(found[0])));
    last = found.index + found[0].length;
  }
  nodes.push(text.slice(last));
  return nodes;
}

/** Return the same as plain text, for labels in charts. */
function plain(text) {
  return String(text).replace(INVISIBLE, (character) => `⟨${codePoint(character)}⟩`);
}

/** Print a number with the digits that matter. */
function digits(value, places = 3) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(2);
  return size < 100 ? value.toFixed(places) : value.toFixed(0);
}
