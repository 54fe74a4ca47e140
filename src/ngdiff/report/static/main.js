"use strict";
// ---- colours ----

const THEMES = ["auto", "light", "dark"];

function setTheme(name) {
  if (name === "auto") document.documentElement.removeAttribute("data-theme");
  else document.documentElement.setAttribute("data-theme", name);
  const button = byId("theme");
  button.textContent = name[0].toUpperCase() + name.slice(1);
  button.setAttribute("aria-label", `Colours: ${name === "auto" ? "as the system has them" : name}`);
  button.dataset.name = name;
}

byId("theme").addEventListener("click", () => {
  const now = THEMES.indexOf(byId("theme").dataset.name ?? "auto");
  setTheme(THEMES[(now + 1) % THEMES.length]);
});

// ---- copying ----

function textOf(node) {
  if (node.tagName !== "DL") return node.textContent;
  return [...node.children].map((pair) => `${pair.children[0].textContent}: ${pair.children[1].textContent}`).join("\n");
}

async function copy(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // not allowed here, as in some browsers for pages from disk
    }
  }
  const area = el("textarea", { "aria-label": "text to copy" });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const before = button.textContent;
    button.textContent = (await copy(textOf(byId(button.dataset.copy)))) ? "Copied" : "Copying is not allowed here";
    say(button.textContent);
    setTimeout(() => { button.textContent = before; }, 1500);
  });
}

// ---- the parts of the page ----

// Names that go into labels, buttons and charts, with invisible characters written out once and for all.
for (const attack of DATA.membership) attack.name = plain(attack.name);
for (const probe of DATA.curves?.probes ?? []) Object.assign(probe, { outcome: plain(probe.outcome), reason: plain(probe.reason) });

if (DATA.answers.length) startAnswers();
if (DATA.curves) {
  byId("curves-charts").append(...DATA.curves.panels.map((panel) => panelChart(panel, DATA.curves)));
  if (DATA.curves.probes.length) byId("probes").append(...probeSection(DATA.curves.probes));
}
if (DATA.comparison && DATA.comparison.length) {
  byId("curves-legend").append(legendOf(DATA.comparison.map((run, row) => ({ label: plain(run.name), style: runStyle(row), point: true }))));
  byId("curves-charts").append(...comparedCharts(DATA.comparison));
}
for (const data of DATA.tradeoff) if (data.ends.length || data.models.length) byId("tradeoff-charts").append(tradeoffChart(data));
if (DATA.membership.length) {
  const select = byId("attack");
  const draw = () => {
    const attack = DATA.membership[select.value];
    byId("membership-charts").replaceChildren(distributionChart(attack), rocChart(attack));
  };
  select.append(...DATA.membership.map(({ name, tells }, row) => el("option", { value: row }, tells ? `${name} (tells)` : name)));
  select.value = String(Math.max(0, DATA.membership.findIndex(({ tells }) => tells)));
  select.addEventListener("change", draw);
  draw();
}
if (DATA.truth) byId("truth-charts").append(truthChart(DATA.truth));
