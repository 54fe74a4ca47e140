"use strict";
// Answers side by side: all items stay in memory as they came, only one page of them is ever drawn.
const PAGE = 20;
const FOLD = 600;
const MARKED = 20000;
const CHUNK = 2000;
const WORD = /[\p{L}\p{N}_]+/gu;
const CHANGES = {
  lost: "lost", partly: "partly lost", same: "unchanged", gained: "closer to the truth", unknown: "not compared",
};
const ORDERS = {
  worst: ["known best first", null],
  lost: ["lost most first", (item) => (item.said ?? 1) - saidBefore(item)],
  kept: ["lost least first", (item) => saidBefore(item) - (item.said ?? -1)],
};
const state = { set: "", change: "", order: "worst", text: "", page: 0 };

function saidBefore(item) {
  return item.figures_before?.extraction_strength ?? 1;
}

function startAnswers() {
  const sets = d3.rollup(DATA.answers, (items) => items.length, (item) => item.set);
  const changes = d3.rollup(DATA.answers, (items) => items.length, (item) => item.change);
  choices("filter-set", "set", [["", `all (${DATA.answers.length})`], ...[...sets].map(([name, count]) => [name, `${plain(name)} (${count})`])]);
  choices("filter-change", "change", [["", "any"], ...Object.entries(CHANGES).filter(([name]) => changes.has(name)).map(([name, text]) => [name, `${text} (${changes.get(name)})`])]);
  choices("filter-order", "order", Object.entries(ORDERS).map(([name, [text]]) => [name, text]));
  byId("filter-text").addEventListener("input", (event) => {
    state.text = event.target.value.trim().toLowerCase();
    state.page = 0;
    drawAnswers();
  });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  drawAnswers();
}

function choices(id, field, options) {
  const select = byId(id);
  select.append(...options.map(([value, text]) => el("option", { value }, text)));
  select.addEventListener("change", () => {
    state[field] = select.value;
    state.page = 0;
    drawAnswers();
  });
}

function chosen() {
  const found = DATA.answers.filter((item) =>
    (!state.set || item.set === state.set) && (!state.change || item.change === state.change) && (!state.text || haystack(item).includes(state.text)));
  const by = ORDERS[state.order][1];
  return by ? d3.sort(found, by) : found;
}

/** The texts to search in, lowered once; the beginning of long ones. */
function haystack(item) {
  item.hay ??= [item.question, item.truth, item.before, item.after, item.retrained].map((text) => (text ?? "").slice(0, MARKED)).join("\n").toLowerCase();
  return item.hay;
}

function drawAnswers() {
  const items = chosen();
  const pages = Math.max(1, Math.ceil(items.length / PAGE));
  const start = state.page * PAGE;
  byId("answers-list").replaceChildren(...items.slice(start, start + PAGE).map(itemCard));
  byId("answers-count").textContent = items.length
    ? `${start + 1} to ${Math.min(start + PAGE, items.length)} of ${items.length}`
    : "Nothing fits this filter.";
  const turn = (by) => () => {
    state.page += by;
    drawAnswers();
    byId("answers").scrollIntoView();
    byId("answers-count").focus();
  };
  byId("answers-pager").replaceChildren(...(pages > 1 ? [
    el("button", { type: "button", onclick: turn(-1), disabled: state.page === 0 }, "Previous"),
    `page ${state.page + 1} of ${pages}`,
    el("button", { type: "button", onclick: turn(1), disabled: state.page + 1 === pages }, "Next"),
  ] : []));
}

function itemCard(item) {
  const truth = wordsOf(item.truth);
  const asked = wordsOf(item.question);
  const kind = item.set.startsWith("forget") ? "forget" : item.set.startsWith("retain") ? "retain" : "";
  const question = item.question.length > FOLD ? [...shown(item.question.slice(0, FOLD)), "…"] : shown(item.question);
  const sides = [
    ["Before", item.before, item.figures_before],
    ["After", item.after, item.figures_after],
    ["Truth", item.truth, null],
    ...(item.retrained !== undefined ? [["Retrained model", item.retrained, item.figures_retrained]] : []),
  ];
  return el("article", { class: "item" },
    el("p", { class: "tags" },
      el("span", { class: `tag ${kind}` }, ...shown(item.set)),
      el("span", { class: "tag" }, CHANGES[item.change] ?? ""),
      item.broken ? el("span", { class: "tag broken" }, `broken: ${item.broken}`) : null,
      el("bdi", {}, ...shown(item.place.slice(0, 200)))),
    el("h3", { dir: "auto" }, ...(item.question ? question : ["(text without a question)"])),
    el("div", { class: "sides" }, sides.map(([title, text, figures]) => side(title, text, figures, title === "Truth" ? null : truth, asked))));
}

function side(title, text, figures, truth, asked) {
  const strength = figures?.extraction_strength;
  const head = el("h4", {}, title, strength === null || strength === undefined ? null : el("span", { title: "extraction strength: the share of the true answer that follows by itself" }, `strength ${digits(strength, 2)}`));
  if (text === null || text === undefined) return el("div", { class: "side none" }, head, el("p", { class: "said" }, "not asked"));
  if (text === "") return el("div", { class: "side none" }, head, el("p", { class: "said" }, "an empty answer"));
  const said = el("p", { class: "said", dir: "auto" });
  const long = text.length > FOLD;
  fill(said, long ? text.slice(0, FOLD) + "…" : text, truth, asked);
  const box = el("div", { class: "side" }, head, said);
  if (long) {
    const button = el("button", {
      type: "button",
      "aria-expanded": "false",
      onclick: () => {
        const open = button.getAttribute("aria-expanded") === "true";
        button.setAttribute("aria-expanded", String(!open));
        button.textContent = open ? all : "Show less";
        said.classList.toggle("all", !open);
        if (open) said.removeAttribute("tabindex");
        else said.setAttribute("tabindex", "0");
        fill(said, open ? text.slice(0, FOLD) + "…" : text, truth, asked);
      },
    });
    const all = `Show all ${text.length.toLocaleString("en")} characters`;
    button.textContent = all;
    box.append(button);
  }
  return box;
}

/**
 * Put text into an element, words of the truth marked. Texts too long for that go in plain and in blocks, which
 * the browser lays out when they are scrolled to: a line of a million characters takes it minutes as a whole.
 */
function fill(node, text, truth, asked) {
  if (text.length <= MARKED) {
    node.replaceChildren(...marked(text, truth, asked));
    return;
  }
  node.replaceChildren();
  for (let start = 0, end; start < text.length; start = end) {
    end = blockEnd(text, start);
    node.append(el("span", { class: "block" }, plain(text.slice(start, end))));
  }
}

/** End a block after a line or a word where one ends near, else anywhere but within a character. */
function blockEnd(text, start) {
  const most = start + CHUNK;
  if (most >= text.length) return text.length;
  const near = Math.max(text.lastIndexOf("\n", most - 1), text.lastIndexOf(" ", most - 1));
  if (near > start + CHUNK / 2) return near + 1;
  return /[\ud800-\udbff]/.test(text[most - 1]) ? most - 1 : most;
}

function wordsOf(text) {
  return new Set((text.slice(0, MARKED).toLowerCase().match(WORD)) ?? []);
}

function marked(text, truth, asked) {
  if (truth === null) return shown(text);
  const nodes = [];
  let last = 0;
  for (const found of text.matchAll(WORD)) {
    const word = found[0].toLowerCase();
    if (!truth.has(word)) continue;
    nodes.push(...shown(text.slice(last, found.index)));
    nodes.push(el("mark", { class: asked.has(word) ? "weak" : null }, found[0]));
    last = found.index + found[0].length;
  }
  nodes.push(...shown(text.slice(last)));
  return nodes;
}
