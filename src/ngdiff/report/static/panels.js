"use strict";
// ---- curves over steps ----

function panelChart(panel, curves) {
  const many = panel.lines.map((line) => {
    const style = STYLES[line.role];
    const pairs = line.checks
      ? curves.checks.map((check) => [check.step, check[line.field]])
      : curves.steps.step.map((step, row) => [step, curves.steps[line.field][row]]);
    const points = pairs
      .filter(([x, y]) => x !== null && y !== null && (!panel.log || y > 0))
      .map(([x, y]) => ({ x, y, title: `step ${x}\n${line.label}: ${digits(y, 4)}` }));
    return { line, style, points };
  });
  const probes = panel.key === "rate" ? curves.probes.filter((probe) => probe.after > 0) : [];
  const title = panel.title;
  const what = many.map(({ line, points }) => described(line.label, points)).join("; ");
  const kept = curves.kept !== null ? `; kept: step ${curves.kept}` : "";
  return chart({
    title,
    unit: panel.unit,
    legend: [
      ...(many.length > 1 || probes.length ? many.map(({ line, style, points }) => ({ label: line.label, style, point: points.length <= DOTS })) : []),
      ...(probes.length ? [{ label: "probe (choose one below)", style: { color: "var(--retain)", symbol: "diamond2" }, line: false, point: true }] : []),
    ],
    label: `${title} over steps. ${what}${kept}.`,
    draw: (width) => {
      const drawn = plot(width, {
        x: { label: "step", ticks: Math.max(3, Math.floor(width / 70)), tickFormat: (d) => (Number.isInteger(d) ? String(d) : "") },
        y: { label: null, grid: true, type: panel.log ? "log" : "linear", ticks: panel.log ? 4 : 5, tickFormat: panel.log ? power : undefined, nice: !panel.log, zero: panel.key === "strength" || panel.key === "changed" },
        marks: [
          ...panel.rules.filter(([, y]) => !panel.log || y > 0).flatMap(([text, y]) => level(y, text, "var(--soft)")),
          ...momentsOf(curves),
          ...many.flatMap(({ points, style, line }) => series(points, style, line.label)),
          Plot.dot(probes, { x: "step", y: "after", symbol: "diamond2", r: 6, fill: "var(--retain)", stroke: "var(--paper)", ariaDescription: "probes" }),
          tips(many.flatMap(({ points }) => points)),
        ],
      });
      drawn.querySelectorAll('[aria-description="probes"] > *').forEach((dot, row) => {
        dot.style.cursor = "pointer";
        dot.addEventListener("click", () => chooseProbe(curves.probes.indexOf(probes[row]), true));
      });
      return drawn;
    },
    table: () => ({ head: ["step", ...many.map(({ line }) => line.label)], rows: joined(many) }),
  });
}

function momentsOf(curves) {
  const { kept, stopped } = curves;
  if (kept === null || stopped === null) return [];
  const end = { color: "var(--soft)", dash: "2 3" };
  if (kept === stopped) return moment(kept, "stopped, kept", STYLES.ref);
  return [...moment(stopped, "stopped", end), ...moment(kept, "kept", STYLES.ref, kept < stopped / 5 ? "start" : "middle")];
}

// ---- probes ----

let chooseProbe = () => {};

function probeSection(probes) {
  const place = el("div", {});
  const buttons = probes.map((probe, row) => el("button", {
    type: "button", "aria-pressed": "false", onclick: () => chooseProbe(row, false),
  }, `step ${probe.step}: ${probe.outcome}`));
  chooseProbe = (row, jump) => {
    buttons.forEach((button, other) => button.setAttribute("aria-pressed", String(other === row)));
    place.replaceChildren(el("div", { class: "grid" }, parabola(probes[row])));
    if (jump) byId("probes").scrollIntoView({ block: "center" });
    say(`Probe of step ${probes[row].step} is drawn.`);
  };
  return [
    el("h3", {}, "How the learning rate was found"),
    el("p", { class: "hint" }, "Each probe measures the retain loss before, at and beyond the weights along the update; the parabola through the three tells the next rate. Choose one to see it."),
    el("div", { class: "probe-buttons", role: "group", "aria-label": "Probes" }, buttons),
    place,
  ];
}

function parabola(probe) {
  const whole = probe.points.filter((p) => [p.width, p.minus, p.zero, p.plus].every((value) => value !== null));
  const last = whole[whole.length - 1];
  const legend = [
    { label: "parabola", style: STYLES.retain },
    { label: "measured", style: { color: "var(--forget)", symbol: "circle" }, line: false, point: true },
    ...(whole.length > 1 ? [{ label: "measured at other widths", style: { color: "var(--other)", symbol: "times" }, line: false, point: true }] : []),
  ];
  const rate = `Learning rate ${probe.before === null ? "found" : `${digits(probe.before)} →`} ${digits(probe.after)}`;
  const why = el("p", { class: "probe-why" }, `${rate}: ${probe.outcome}, ${plain(probe.reason)}. A loss was taken to be sure to ${digits(probe.noise)} nats.`);
  const three = ({ width, minus, zero, plus }) => [{ x: -width, y: minus }, { x: 0, y: zero }, { x: width, y: plus }];
  const table = () => ({ head: ["distance", "retain loss"], rows: whole.flatMap(three).map(({ x, y }) => [x, y]) });
  const label = last
    ? `Retain loss along the update at step ${probe.step}: ${three(last).map(({ x, y }) => `${digits(y, 5)} at ${digits(x)}`).join(", ")}. ${rate}.`
    : `No probe of step ${probe.step} was finite.`;
  const draw = (width) => (last ? drawParabola(width, last, whole.slice(0, -1).flatMap(three), three(last), probe) : el("p", {}, "No loss along this update was finite."));
  return chart({ title: `Retain loss along the update, step ${probe.step}`, unit: "nats per token, against the distance as a learning rate", legend, label, draw, table, after: why });
}

function drawParabola(width, { width: w, minus, zero, plus }, others, three, probe) {
  const slope = (minus - plus) / (2 * w);
  const bend = (plus - 2 * zero + minus) / (w * w);
  const right = Math.max(w, Math.min(4 * w, (probe.after || 0) * 1.15));
  const curve = d3.range(0, 101).map((i) => {
    const x = -w + ((right + w) * i) / 100;
    return { x, y: zero - slope * x + (bend / 2) * x * x };
  });
  const inside = others.filter(({ x }) => x >= -w && x <= right);
  return plot(width, {
    height: Math.round(Math.min(320, width * 0.55)),
    marginLeft: 64,
    x: { label: "learning rate", ticks: 5, tickFormat: (d) => (d === 0 ? "0" : d3.format("~e")(d)) },
    y: { label: null, grid: true, ticks: 5, tickFormat: "~g" },
    marks: [
      Plot.line(curve, { x: "x", y: "y", stroke: "var(--retain)", strokeWidth: 2 }),
      ...(probe.before && probe.before <= right ? moment(probe.before, "before", { color: "var(--soft)", dash: "2 3" }, "middle") : []),
      ...(probe.after <= right ? moment(probe.after, probe.before && Math.abs(probe.after - probe.before) < (right + w) / 8 ? "" : "chosen", STYLES.ref, "middle") : []),
      Plot.dot(inside, { x: "x", y: "y", symbol: "times", stroke: "var(--other)", r: 3 }),
      Plot.dot(three, { x: "x", y: "y", fill: "var(--forget)", stroke: "var(--paper)", r: 5.5 }),
    ],
  });
}

// ---- forgetting against utility ----

function tradeoffChart(data) {
  const { ends, path, models } = data;
  const all = [...ends, ...path, ...models];
  const front = ends.filter((end) => end.front).sort((a, b) => a.x - b.x);
  const several = ends.length > 1;
  const from = data.source === "checks" ? "from the run's own checks" : "from evaluations";
  const legend = [
    { label: several ? "runs" : plain(ends[0]?.name ?? "this run"), style: { color: "var(--forget)", symbol: "star" }, line: false, point: true },
    ...(path.length ? [{ label: "checks on the way", style: { color: "var(--other)", symbol: "circle", dash: "2 3" }, point: true }] : []),
    ...(front.length > 1 ? [{ label: "Pareto front", style: { color: "var(--ref)" } }] : []),
    ...models.map(({ name }) => ({ label: name, style: modelStyle(name), line: false, point: true })),
  ];
  const title = data.title ? `Forgetting against utility, ${plain(data.title)}` : `Forgetting against utility, ${from}`;
  return chart({
    title,
    unit: "answer probability of the retain set over extraction strength of the forget set; best is top left; bars: 95% intervals",
    legend,
    label: `${title}. ${[...ends, ...models].map((p) => `${plain(p.name)}: extraction strength ${digits(p.x)}, retain probability ${digits(p.y)}${p.front && several ? ", on the Pareto front" : ""}`).join("; ")}.`,
    draw: (width) => plot(width, {
      height: Math.round(Math.min(400, Math.max(260, width * 0.6))),
      inset: 10,
      x: { label: "extraction strength, forget set", domain: padded(all.map((p) => p.x)), grid: true, ticks: 6 },
      y: { label: null, domain: padded(all.map((p) => p.y).concat(data.floor ?? [])), grid: true, ticks: 6 },
      marks: [
        ...(data.floor ? level(data.floor, "floor", "var(--soft)") : []),
        ...(data.target !== null && data.target !== undefined ? moment(data.target, "target", { color: "var(--soft)", dash: "2 3" }, "middle") : []),
        Plot.line(path, { x: "x", y: "y", stroke: "var(--other)", strokeDasharray: "2 3" }),
        Plot.dot(path, { x: "x", y: "y", fill: "var(--other)", r: 3 }),
        Plot.text(path.filter((_, i) => i === 0), { x: "x", y: "y", text: () => "start", dy: 13, fill: "var(--soft)" }),
        ...(front.length > 1 ? [Plot.line(front, { x: "x", y: "y", curve: "step-after", stroke: "var(--ref)", strokeWidth: 2 })] : []),
        Plot.link(ends.filter((p) => p.x_interval), { x1: (p) => p.x_interval[0], x2: (p) => p.x_interval[1], y1: "y", y2: "y", stroke: "var(--forget)", strokeOpacity: 0.7, clip: true }),
        Plot.link(ends.filter((p) => p.y_interval), { y1: (p) => p.y_interval[0], y2: (p) => p.y_interval[1], x1: "x", x2: "x", stroke: "var(--forget)", strokeOpacity: 0.7, clip: true }),
        Plot.dot(ends, { x: "x", y: "y", symbol: "star", r: 6.5, fill: "var(--forget)", stroke: "var(--paper)" }),
        ...models.map((model) => Plot.dot([model], { x: "x", y: "y", symbol: modelStyle(model.name).symbol, r: 6, fill: modelStyle(model.name).symbol === "times" ? "none" : modelStyle(model.name).color, stroke: modelStyle(model.name).color, strokeWidth: 2 })),
        ...(several && ends.length <= 12 ? labels(ends, width) : []),
        Plot.tip([...ends, ...models], Plot.pointer({ x: "x", y: "y", title: (p) => `${plain(p.name)}\nextraction strength ${digits(p.x)}\nretain probability ${digits(p.y)}`, fill: "var(--paper)", stroke: "var(--line)" })),
      ],
    }),
    table: () => ({
      head: ["point", "extraction strength, forget", "probability, retain"],
      rows: [
        ...path.map((p) => [`check of step ${p.step}`, p.x, p.y]),
        ...ends.map((p) => [p.name, p.x, p.y]),
        ...models.map((p) => [p.name, p.x, p.y]),
      ],
    }),
  });
}

/** Name the points, those far right to their left, neighbours in turn above and below. */
function labels(ends, width) {
  const middle = d3.mean(d3.extent(ends, (p) => p.x));
  const sorted = [...ends].sort((a, b) => a.y - b.y);
  return sorted.map((end, i) => Plot.text([end], {
    x: "x", y: "y", text: (p) => plain(p.name).slice(0, 28), fontSize: width < 420 ? 10 : 11.5,
    textAnchor: end.x > middle ? "end" : "start", dx: end.x > middle ? -9 : 9, dy: i % 2 ? -8 : 8,
    fill: "var(--ink)", stroke: "var(--paper)", strokeWidth: 3,
  }));
}

function modelStyle(name) {
  return name.startsWith("retrained") ? STYLES.ref : STYLES.before;
}

function padded(values) {
  const [low, high] = d3.extent(values);
  const room = Math.max(0.02, (high - low) * 0.12);
  return [Math.max(0, low - room), Math.min(1, high + room)];
}

// ---- audit ----

function distributionChart(attack) {
  const extent = d3.extent([...attack.forget, ...attack.holdout]);
  const bins = d3.bin().domain(extent).thresholds(Math.min(24, Math.ceil(Math.sqrt(attack.forget.length + attack.holdout.length)) + 4));
  const bars = (values, sign) => bins(values).filter((b) => b.x1 > b.x0).map((b) => ({ x1: b.x0, x2: b.x1, y: (sign * b.length) / values.length }));
  const [up, down] = [bars(attack.forget, 1), bars(attack.holdout, -1)];
  const means = [d3.mean(attack.forget), d3.mean(attack.holdout)];
  return chart({
    title: "Scores of the two sets",
    unit: "share of the items; forget set above, holdout below",
    legend: [
      { label: `forget set (${attack.forget.length})`, style: { color: "var(--forget)", width: 8 } },
      { label: `never seen (${attack.holdout.length})`, style: { color: "var(--retain)", width: 8 } },
    ],
    label: `Distribution of the scores by ${attack.name}: mean of the forget set ${digits(means[0])}, of text never seen ${digits(means[1])}. Higher scores mean seen.`,
    draw: (width) => plot(width, {
      x: { label: `score by ${attack.name} (higher: likelier seen)`, ticks: 6 },
      y: { label: null, grid: true, ticks: 5, tickFormat: (d) => `${Math.round(Math.abs(d) * 100)}%` },
      marks: [
        Plot.rect(up, { x1: "x1", x2: "x2", y1: 0, y2: "y", fill: "var(--forget)", inset: 0.5 }),
        Plot.rect(down, { x1: "x1", x2: "x2", y1: 0, y2: "y", fill: "var(--retain)", inset: 0.5 }),
        Plot.ruleY([0], { stroke: "var(--ink)" }),
      ],
    }),
    table: () => ({ head: ["from", "to", "forget", "never seen"], rows: up.map((bar, i) => [digits(bar.x1), bar.x2, bar.y, Math.abs(down[i].y)]) }),
  });
}

const ROC_STYLES = { "this model": STYLES.forget, "target model": STYLES.before, "retrained model": STYLES.ref };

function rocChart(attack) {
  const area = (roc) => `AUC ${digits(roc.auc)}${roc.interval ? ` [${digits(roc.interval[0])}, ${digits(roc.interval[1])}]` : ""}`;
  const points = (roc) => roc.x.map((x, i) => ({ x, y: roc.y[i] }));
  return chart({
    title: "ROC curve",
    unit: attack.tells ? "tells the sets apart beyond chance" : "does not tell the sets apart beyond chance",
    legend: attack.rocs.map((roc) => ({ label: `${roc.label}: ${area(roc)}`, style: ROC_STYLES[roc.label] })),
    label: `ROC curves of the attack by ${attack.name}. ${attack.rocs.map((roc) => `${roc.label}: ${area(roc)}`).join("; ")}. An AUC of 0.5 is chance.`,
    draw: (width) => plot(width, {
      height: Math.round(Math.min(340, width * 0.8)),
      x: { label: "never-seen items taken for seen", domain: [0, 1], ticks: 5, tickFormat: "~g" },
      y: { label: null, domain: [0, 1], grid: true, ticks: 5, tickFormat: "~g" },
      marks: [
        Plot.link([0], { x1: 0, y1: 0, x2: 1, y2: 1, stroke: "var(--soft)", strokeDasharray: "2 4" }),
        ...attack.rocs.map((roc) => Plot.line(points(roc), { x: "x", y: "y", stroke: ROC_STYLES[roc.label].color, strokeDasharray: ROC_STYLES[roc.label].dash, strokeWidth: 2 })),
      ],
    }),
    table: () => ({ head: ["model", "never seen taken for seen", "forget set taken for seen"], rows: attack.rocs.flatMap((roc) => roc.x.map((x, i) => [roc.label, digits(x), roc.y[i]])) }),
  });
}

function truthChart(truth) {
  const steps = truth.samples.map(({ label, values }) => ({
    label, style: ROC_STYLES[label], points: values.map((x, i) => ({ x, y: (i + 1) / values.length })),
  }));
  const range = d3.extent(truth.samples.flatMap(({ values }) => values));
  steps.forEach(({ points }) => { points.unshift({ x: range[0], y: 0 }); points.push({ x: range[1], y: 1 }); });
  const ks = truth.ks;
  const told = ks ? `Kolmogorov–Smirnov distance to the retrained model ${digits(ks.distance)}${truth.forget_quality === null ? "" : `, p-value (forget quality) ${digits(truth.forget_quality)}`}` : "No retrained model was given, so there is no distance";
  return chart({
    title: "Truth ratios of the forget set",
    unit: `share of items at or below; ${told}`,
    legend: steps.map(({ label, style }) => ({ label, style })),
    label: `Cumulative distributions of log truth ratios. ${told}.`,
    draw: (width) => plot(width, {
      height: Math.round(Math.min(340, width * 0.7)),
      x: { label: "log p(wrong) / p(right), nats per token", ticks: 6 },
      y: { label: null, domain: [0, 1], grid: true, ticks: 5, tickFormat: "~g" },
      marks: [
        ...steps.map(({ points, style }) => Plot.line(points, { x: "x", y: "y", curve: "step-after", stroke: style.color, strokeDasharray: style.dash, strokeWidth: 2 })),
        ...(ks ? [
          Plot.link([ks], { x1: "x", x2: "x", y1: "ours", y2: "theirs", stroke: "var(--ink)", strokeWidth: 3.5 }),
          Plot.text([ks], { x: "x", y: (d) => (d.ours + d.theirs) / 2, text: (d) => `KS ${digits(d.distance)}`, dx: 8, textAnchor: "start", fill: "var(--ink)", stroke: "var(--paper)", strokeWidth: 4, fontWeight: 600 }),
        ] : []),
      ],
    }),
    table: () => ({ head: ["model", "log truth ratio"], rows: truth.samples.flatMap(({ label, values }) => values.map((value) => [label, value])) }),
  });
}

// ---- several runs ----

const RUN_COLORS = ["--forget", "--retain", "--ref", "--before", "--other", "--mixed"];
const RUN_DASHES = [null, "7 3", "2 3", "9 3 2 3"];
const RUN_SYMBOLS = ["circle", "square", "triangle", "diamond2", "times", "star", "cross"];

function runStyle(row) {
  return { color: `var(${RUN_COLORS[row % RUN_COLORS.length]})`, dash: RUN_DASHES[row % RUN_DASHES.length], symbol: RUN_SYMBOLS[row % RUN_SYMBOLS.length] };
}

const COMPARED = [
  ["forget_extraction_strength_checked", "Extraction strength of the forget set", "at checks", false],
  ["retain_probability_checked", "Answer probability of the retain set", "held out, at checks", false],
  ["forget_nll_checked", "Negative log-likelihood of the forget set", "nats per token, at checks", false],
  ["learning_rate", "Learning rate", "per step", true],
];

function comparedCharts(runs) {
  return COMPARED.map(([field, title, unit, log]) => {
    const many = runs.map((run, row) => ({
      name: plain(run.name), style: runStyle(row),
      points: run.lines[field].filter(([, y]) => !log || y > 0).map(([x, y]) => ({ x, y, title: `${plain(run.name)}\nstep ${x}: ${digits(y, 4)}` })),
    })).filter(({ points }) => points.length);
    if (!many.length) return null;
    return chart({
      title, unit,
      label: `${title} of ${many.length} runs over steps. ${many.map(({ name, points }) => described(name, points)).join("; ")}.`,
      draw: (width) => plot(width, {
        x: { label: "step", ticks: 6 },
        y: { label: null, grid: true, type: log ? "log" : "linear", ticks: log ? 4 : 5, tickFormat: log ? power : undefined, nice: !log },
        marks: [...many.flatMap(({ points, style, name }) => series(points, style, name)), tips(many.flatMap(({ points }) => points))],
      }),
      table: () => ({ head: ["step", ...many.map(({ name }) => name)], rows: joined(many) }),
    });
  }).filter(Boolean);
}
