"use strict";
// The page of `poise explore`. Every text of the run is data: it enters the page as text nodes only, and plots get it escaped.
const run = JSON.parse(document.getElementById("overview").textContent);
const all = column(run.candidates);
const byId = new Map(all.map((c, i) => [c.id, i]));
const main = document.getElementById("main");
const CHUNK = run.chunk;
const SYMBOLS = { baseline: "star", scored: "circle", reference: "diamond", stopped: "square", failed: "x", refused: "triangle-down", unfinished: "circle-open" };
const LESS_IS_BETTER = new Set(["tokens", "completion length", "seed deviation", "generation"]);
const ROWS = 200;
const ALL_DRAWN = 1000; // candidates up to which each is drawn
const DRAWN = 600; // of more: those that matter and an even choice of the rest
const OFFERED = 300; // candidates that a list offers to choose from
const UNPACKED = 24; // parts of the details that are kept unpacked
const BANDS = "Lines are means over seeds, bands reach from the lowest to the highest seed.";
const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8250df", "#999999"];

// ---- elements

function el(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "onclick") made.addEventListener("click", value);
    else if (name === "class") made.className = value;
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...present(children));
  return made;
}
const present = (children) => children.flat().filter((one) => one !== null && one !== undefined);
const fill = (...children) => main.replaceChildren(...present(children));
const link = (hash, text) => el("a", { href: hash }, text);
const candidateHash = (c) => "#/candidate/" + encodeURIComponent(c.id);
const candidateLink = (c) => link(candidateHash(c), c.name);
const escaped = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const signed = (value) => (value > 0 ? "+" : "") + value.toFixed(1);
function limits(interval, sign) {
  if (!interval) return "";
  const show = (value) => (value === null ? "open" : sign ? signed(value) : value.toFixed(1));
  if (interval[1] === null && interval[2] === null) return `${show(interval[0])} (${interval[3]} seed${interval[3] === 1 ? "" : "s"}, no interval)`;
  return `${show(interval[0])} [${show(interval[1])}, ${show(interval[2])}]`;
}
const count = (value) => (value >= 1e6 ? (value / 1e6).toFixed(2) + " M" : value >= 1e4 ? Math.round(value / 1e3) + " k" : String(value));

// ---- details, decompressed one chunk at a time; they stand below this script, so that the first drawing does not wait for them

const loaded = new Promise((done) => (document.readyState === "loading" ? addEventListener("DOMContentLoaded", done) : done()));
const chunks = new Map();
async function detail(index) {
  const number = Math.floor(index / CHUNK);
  await loaded;
  const found = chunks.get(number) || unpacked(document.getElementById("details-" + number).textContent);
  chunks.delete(number); // the last one used stands last
  chunks.set(number, found);
  if (chunks.size > UNPACKED) chunks.delete(chunks.keys().next().value);
  return (await found)[index % CHUNK];
}
async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (one) => one.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return column(JSON.parse(await new Response(stream).text()));
}
// What poise_core.render.explorer.columns made. Records have no prototype: a name in them may be any text.
function column(packed) {
  if (Array.isArray(packed)) return packed;
  if (packed.l) {
    const items = column(packed.i);
    let at = 0;
    return packed.l.map((length) => (length < 0 ? null : items.slice(at, (at += length))));
  }
  const rows = Array.from({ length: packed.d }, () => Object.create(null));
  for (const place of packed.n) rows[place] = null;
  for (const [name, [without, values]] of Object.entries(packed.k)) {
    const missing = new Set(without), own = column(values);
    let at = 0;
    rows.forEach((row, place) => { if (row !== null && !missing.has(place)) row[name] = own[at++]; });
  }
  return rows;
}

// ---- metrics and filters

const metricNames = ["Overall", "delta", "tokens", "generation", ...new Set(all.flatMap((c) => Object.keys(c.metrics)))];
function metric(c, name) {
  if (name === "Overall") return c.overall && c.overall[0];
  if (name === "delta") return c.delta ? c.delta[0] : c.outcome === "baseline" ? 0 : null;
  if (name === "tokens") return c.tokens || null;
  if (name === "generation") return c.generation;
  return c.metrics[name] ?? null;
}
const shortly = (c, name) => { const value = metric(c, name); return value === null ? "" : name === "tokens" ? count(value) : name === "generation" ? String(value) : value.toFixed(name === "seed deviation" ? 2 : 1); };
const words = document.getElementById("words"), chosen = document.getElementById("outcome"), from = document.getElementById("from");
const standing = (c) => c.state || c.outcome;
for (const name of [...new Set(all.map(standing))].sort()) chosen.append(el("option", { value: name }, name));
const searched = (c) => (c.text ??= [c.name, c.id, c.mechanisms, c.change, c.state, c.outcome, c.failure ? c.failure.kind + " " + c.failure.message : ""].join(" ").toLowerCase());
function shown() {
  const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean), first = Number(from.value || 0);
  const kept = all.filter((c) => (!chosen.value || standing(c) === chosen.value) && c.generation >= first && wanted.every((word) => searched(c).includes(word)));
  document.getElementById("shown").textContent = `${kept.length} of ${all.length} shown`;
  return kept;
}

// ---- plots

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
function layout(more) {
  const axis = { gridcolor: style("--line"), zerolinecolor: style("--line"), automargin: true };
  return { paper_bgcolor: style("--back"), plot_bgcolor: style("--back"), font: { color: style("--ink"), size: 13 }, margin: { l: 60, r: 20, t: 30, b: 60 },
    hovermode: "closest", uirevision: "kept", legend: { orientation: "h", y: 1.08 }, ...more, xaxis: { ...axis, ...more.xaxis, title: { standoff: 8, ...more.xaxis?.title } }, yaxis: { ...axis, ...more.yaxis } };
}
// `traces` makes them, in the colours of that moment.
function plot(place, traces, more, label) {
  place.setAttribute("role", "group");
  place.setAttribute("aria-label", label + " The table view has the same numbers.");
  Plotly.newPlot(place, traces(), layout(more), { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] });
  place.again = () => Plotly.react(place, traces(), layout(more), place._context);
  place.on("plotly_click", (event) => {
    const index = event.points[0].customdata;
    if (index !== undefined && index !== null) location.hash = candidateHash(all[index]);
  });
}
// Paper is white, and as wide as it is: plots take the light colours, and are scaled as pictures are.
function printing(begins) {
  document.documentElement.classList.toggle("printing", begins);
  for (const place of main.querySelectorAll(".plot")) {
    if (!place.again) continue;
    place.again();
    const { width, height } = place._fullLayout;
    place.style.setProperty("--ratio", `${width} / ${height}`);
    for (const picture of place.querySelectorAll(".main-svg")) begins ? picture.setAttribute("viewBox", `0 0 ${width} ${height}`) : picture.removeAttribute("viewBox");
  }
}
const hover = (c) =>
  [`<b>${escaped(c.name)}</b>  ${escaped(standing(c))}`, c.overall ? "Overall " + limits(c.overall) : "", c.delta ? "to the baseline " + limits(c.delta, true) : "",
    escaped((c.change || "").slice(0, 90)), c.failure ? escaped(`${c.failure.kind}: ${c.failure.message}`.slice(0, 110)) : ""].filter(Boolean).join("<br>");
const deltas = all.filter((c) => c.outcome === "scored").map((c) => metric(c, "delta")).filter((value) => value !== null);
// Of the colours: to the best gain and twice the median, so that a few collapses do not make everything else look alike.
const sizes = deltas.map(Math.abs).sort((a, b) => a - b);
const reach = Math.max(1, ...deltas, 2 * (sizes[Math.floor(sizes.length / 2)] ?? 0));
function markers(kept, x, y, more) {
  const hollow = (c) => (metric(c, "delta") === null && !SYMBOLS[c.outcome].endsWith("-open") ? "-open" : "");
  return Object.keys(SYMBOLS).filter((name) => kept.some((c) => c.outcome === name)).map((name, place) => {
    const own = kept.filter((c) => c.outcome === name);
    return { type: "scatter", mode: "markers", name, x: own.map(x), y: own.map(y), customdata: own.map((c) => byId.get(c.id)), text: own.map(hover), hoverinfo: "text",
      marker: { symbol: own.map((c) => SYMBOLS[name] + hollow(c)), size: name === "baseline" ? 15 : 10, line: { width: 1, color: style("--soft") }, color: own.map((c) => metric(c, "delta") ?? 0),
        cmin: -reach, cmax: reach, colorscale: ["--low", "--lower", "--even", "--higher", "--high"].map((name, i) => [i / 4, style(name)]), showscale: place === 0, colorbar: { title: { text: "delta", side: "top" }, thickness: 12 } },
      ...(more ? more(own) : {}) };
  });
}

// The mean of a curve over seeds, and behind it the band from the lowest to the highest; nothing without a curve.
function banded(curve, name, color) {
  if (!curve) return [];
  const band = { x: [...curve.step, ...[...curve.step].reverse()], y: [...curve.high, ...[...curve.low].reverse()], fill: "toself", fillcolor: color + "33", line: { width: 0 }, hoverinfo: "skip", showlegend: false };
  return [{ type: "scatter", mode: "lines", ...band }, { type: "scatter", mode: "lines", x: curve.step, y: curve.mean, name: escaped(name), line: { color, width: 2 } }];
}
// Of many candidates those that matter (the baseline, `first`, the best with their ancestors) and evenly some of the rest.
function drawable(kept, first) {
  if (kept.length <= ALL_DRAWN) return kept;
  const among = new Set(kept), own = new Set(first), value = (c) => metric(c, "delta") ?? -Infinity;
  const best = [...kept].sort((a, b) => value(b) - value(a)).slice(0, DRAWN / 8);
  if (run.baseline !== null && among.has(all[run.baseline])) own.add(all[run.baseline]);
  for (let c of best) for (; c && among.has(c) && !own.has(c) && own.size < DRAWN / 2; c = c.parents.length ? all[c.parents[0]] : null) own.add(c);
  const rest = kept.filter((c) => !own.has(c)), every = rest.length / (DRAWN - own.size);
  for (let at = 0; at < rest.length; at += every) own.add(rest[Math.floor(at)]);
  return kept.filter((c) => own.has(c));
}
// Draw `kept` by `traces(drawn)` over a shade of where all of them are, and again what is left in the window when it is zoomed.
function drawMany(place, note, kept, x, y, traces, more, label, first = []) {
  const shade = () => ({ type: "histogram2d", x: kept.map(x), y: kept.map(y), nbinsx: 60, nbinsy: 60, colorscale: [[0, style("--back")], [1, style("--shade")]], showscale: false, hoverinfo: "skip" });
  let within = kept;
  const drawing = () => {
    const drawn = drawable(within, first.filter((c) => within.includes(c)));
    note.textContent = within.length > drawn.length ? `${drawn.length} of ${within.length} are drawn: the best with their ancestors, and evenly some of the rest; the shade tells where all are. Zoom or filter to see the others.` : "";
    return [...(within.length > drawn.length ? [shade()] : []), ...traces(drawn)];
  };
  plot(place, drawing, more, label);
  if (kept.length > ALL_DRAWN) place.on("plotly_relayout", (change) => {
    if (!Object.keys(change).some((name) => /^[xy]axis/.test(name))) return;
    const inside = (axis, value) => value === null || (value - axis.range[0]) * (value - axis.range[1]) <= 0;
    const { xaxis, yaxis } = place._fullLayout;
    within = kept.filter((c) => inside(xaxis, x(c)) && inside(yaxis, y(c)));
    Plotly.react(place, drawing(), place.layout, place._context);
  });
}
// Candidates that no other beats in both metrics, from one end to the other.
function frontOf(known, x, y) {
  const sign = (name) => (LESS_IS_BETTER.has(name) ? -1 : 1), one = (c) => sign(x) * metric(c, x), other = (c) => sign(y) * metric(c, y);
  const front = [];
  let highest = -Infinity, at = null;
  for (const c of [...known].sort((a, b) => one(b) - one(a) || other(b) - other(a))) {
    if (other(c) > highest || (other(c) === highest && one(c) === at)) front.push(c); // equals do not beat one another
    if (other(c) > highest) { highest = other(c); at = one(c); }
  }
  return front.sort((a, b) => metric(a, x) - metric(b, x));
}

const views = {
  tree(kept) {
    const place = el("div", { class: "plot" }), note = el("p", { class: "soft" });
    const columns = kept.map((c) => c.x), ends = columns.length ? [columns.reduce((a, b) => Math.min(a, b)) - 0.7, columns.reduce((a, b) => Math.max(a, b)) + 0.7] : [0, 1];
    fill(el("h2", {}, "The tree"), el("p", { class: "soft" }, "A column is a generation; colour is the difference to the baseline (blue is better; beyond the scale it does not change), the symbol is the outcome; hollow ones have no such difference. A click opens a candidate."), place, note);
    drawMany(place, note, kept, (c) => c.x, (c) => c.y, (drawn) => {
      const x = [], y = [];
      for (const c of drawn) if (c.parents.length) { const parent = all[c.parents[0]]; x.push(parent.x, c.x, null); y.push(parent.y, c.y, null); }
      return [{ type: "scatter", mode: "lines", x, y, hoverinfo: "skip", showlegend: false, line: { color: style("--line"), width: 1 } }, ...markers(drawn, (c) => c.x, (c) => c.y)];
    }, { xaxis: { title: { text: "generation" }, range: ends, ...(ends[1] - ends[0] > 32 ? {} : { dtick: 1 }) }, yaxis: { visible: false, autorange: "reversed" } }, "Tree of candidates by generation.");
  },
  plot(kept, query) {
    const x = query.get("x") || "tokens", y = query.get("y") || "Overall";
    const choose = (name, value) => el("label", {}, name + " ", selectOf(metricNames, value, (next) => go("plot", { x, y, [name]: next })));
    const place = el("div", { class: "plot" }), note = el("p", { class: "soft" }), known = kept.filter((c) => metric(c, x) !== null && metric(c, y) !== null);
    const front = frontOf(known, x, y);
    fill(el("h2", {}, "Two metrics"), el("p", { class: "noprint" }, choose("x", x), " ", choose("y", y)),
      el("p", { class: "soft" }, `The line joins the ${front.length} candidates that no other beats in both. Bars are 95 % intervals.`), place, note);
    const bars = (own, name) => { const of = (c) => (name === "Overall" ? c.overall : name === "delta" ? c.delta : null);
      return { type: "data", symmetric: false, visible: own.some((c) => of(c) && of(c)[1] !== null), thickness: 1, color: style("--soft"),
        array: own.map((c) => (of(c) && of(c)[2] !== null ? of(c)[2] - of(c)[0] : 0)), arrayminus: own.map((c) => (of(c) && of(c)[1] !== null ? of(c)[0] - of(c)[1] : 0)) }; };
    drawMany(place, note, known, (c) => metric(c, x), (c) => metric(c, y), (drawn) => [{ type: "scatter", mode: "lines", name: "Pareto front", x: front.map((c) => metric(c, x)), y: front.map((c) => metric(c, y)), hoverinfo: "skip", line: { color: style("--mark"), width: 1, dash: "dot" } },
      ...markers(drawn, (c) => metric(c, x), (c) => metric(c, y), (own) => ({ error_x: bars(own, x), error_y: bars(own, y) }))],
      { xaxis: { title: { text: x } }, yaxis: { title: { text: y } } }, `${y} over ${x}.`, front);
  },
  search(kept) {
    const half = () => el("div", { class: "plot half" }), one = half(), two = half(), hours = half(), three = run.cost.calls ? half() : null, note = el("p", { class: "soft" });
    fill(el("h2", {}, "The search over what it spent"), el("p", { class: "soft" }, "Best is the shrunken estimate of the candidate that the run would name at that moment; it may fall."), one, note, el("h2", {}, "Cost"), el("div", { class: "columns" }, two, hours, three));
    const spent = new Map(), scored = kept.filter((c) => c.overall && c.outcome !== "reference");
    let sum = 0;
    for (const c of all) if (c.tokens) spent.set(c, (sum += c.tokens));
    const beside = Object.entries(run.beside || {}).map(([name, steps], i) => ({ type: "scatter", mode: "lines", name: escaped(name), line: { shape: "hv", width: 2, color: PALETTE[(i + 1) % PALETTE.length] }, x: steps.map((s) => s.tokens), y: steps.map((s) => s.best) }));
    drawMany(one, note, scored, (c) => spent.get(c) ?? null, (c) => c.overall[0], (drawn) => [{ type: "scatter", mode: "lines+markers", name: beside.length ? escaped(run.title) + ", best so far" : "best so far", line: { shape: "hv", width: 2, color: style("--mark") }, x: run.best.map((s) => s.tokens), y: run.best.map((s) => s.best) }, ...beside,
      ...markers(drawn, (c) => spent.get(c) ?? null, (c) => c.overall[0])], { xaxis: { title: { text: "training tokens spent" } }, yaxis: { title: { text: "Overall, percent" } } }, "Overall over training tokens.");
    for (const [where, name, values] of [[two, "training tokens", run.cost.tokens], [hours, "hours of training and evaluation", run.cost.hours]])
      plot(where, () => [{ type: "scatter", mode: "lines", name, y: values, x: values.map((_, i) => i + 1), line: { color: style("--link") } }],
        { xaxis: { title: { text: "candidates trained" } }, yaxis: { title: { text: name } } }, `Sum of ${name} over candidates.`);
    if (three) plot(three, () => [{ type: "scatter", mode: "lines", name: "dollars", x: run.cost.calls.at, y: run.cost.calls.dollars, line: { color: style("--link"), shape: "hv" } }], { yaxis: { title: { text: "dollars for models" } } }, "Dollars over time.");
  },
  async curves(kept, query) {
    const picked = (query.get("ids") || [run.baseline, ...all.map((c, i) => i).filter((i) => all[i].overall).sort((a, b) => all[b].overall[0] - all[a].overall[0]).slice(0, 3)].filter((i) => i !== null).map((i) => all[i].id).join(",")).split(",").filter((id) => byId.has(id));
    const mine = turn, ids = [...new Set(picked)], found = await Promise.all(ids.map((id) => detail(byId.get(id))));
    if (mine !== turn) return;
    const names = [...new Set(found.flatMap((one) => Object.keys(one.curves || {})))].sort(), name = query.get("m") && names.includes(query.get("m")) ? query.get("m") : names.includes("reward_mean") ? "reward_mean" : names[0];
    const place = el("div", { class: "plot" });
    fill(el("h2", {}, "Training curves"), el("p", { class: "noprint" }, el("label", {}, "metric ", selectOf(names, name, (m) => go("curves", { ids: ids.join(","), m }))), " ",
      el("label", {}, "add ", selectOf(["", ...offered(kept.filter((c) => c.tokens))], "", (id) => go("curves", { ids: [...ids, id].join(","), m: name }), (id) => (id ? all[byId.get(id)].name : "a candidate")))),
      el("p", {}, ids.map((id) => el("button", { class: "noprint", onclick: () => go("curves", { ids: ids.filter((one) => one !== id).join(","), m: name }), "aria-label": "remove " + all[byId.get(id)].name }, all[byId.get(id)].name + " ×"))),
      el("p", { class: "soft" }, BANDS), place);
    const traces = () => found.flatMap((one, i) => banded((one.curves || {})[name], all[byId.get(ids[i])].name, PALETTE[i % PALETTE.length]));
    plot(place, traces, { xaxis: { title: { text: "training step" } }, yaxis: { title: { text: name || "" } } }, `${name} over training steps.`);
  },
  table(kept, query) {
    const by = query.get("by") || "Overall", up = query.get("up") === "1", most = Number(query.get("rows") || ROWS), columns = metricNames.filter((name) => name !== "Overall" && name !== "delta");
    const value = (c) => (by === "name" ? c.name.toLowerCase() : by === "outcome" ? standing(c) : metric(c, by));
    const sorted = [...kept].sort((a, b) => { const one = value(a), other = value(b); if (one === null || other === null) return (one === null) - (other === null); return (one < other ? -1 : one > other ? 1 : 0) * (up ? 1 : -1); });
    const head = (name, numeric) => el("th", { scope: "col", class: numeric ? "n" : "", "aria-sort": by === name ? (up ? "ascending" : "descending") : "none" }, el("button", { type: "button", onclick: () => go("table", { by: name, up: by === name && !up ? "1" : "0" }) }, name));
    const rows = sorted.slice(0, most).map((c) => el("tr", {}, el("td", {}, candidateLink(c)), el("td", {}, standing(c)), el("td", { class: "n" }, limits(c.overall)), el("td", { class: "n " + (c.verdict === "better" ? "good" : c.verdict === "worse" ? "bad" : "") }, limits(c.delta, true)),
      columns.map((name) => el("td", { class: "n" }, shortly(c, name)))));
    fill(el("h2", {}, "Candidates"), el("section", {}, el("table", { class: "candidates" }, el("caption", {}, `Intervals are 95 %; deltas are paired with the baseline by seed and problem. ${run.counted}.`),
      el("thead", {}, el("tr", {}, head("name"), head("outcome"), head("Overall", true), head("delta", true), columns.map((name) => head(name, true)))), el("tbody", {}, rows)),
      sorted.length > most ? el("p", {}, el("button", { onclick: () => go("table", { by, up: up ? "1" : "0", rows: most + 1000 }) }, `show more of ${sorted.length}`)) : null));
  },
  credit() {
    const found = run.credit, own = found.mechanisms, place = el("div", { class: "plot" });
    fill(el("h2", {}, "Credit of mechanisms"), el("p", {}, found.says + "."),
      el("p", { class: "soft" }, `What having a mechanism is worth in points of Overall, by a ridge regression over ${found.candidates} scored candidates; bars are 95 %. ${found.left_out} without a score are left out. An ablation tells for one candidate what each does.`),
      ...(own.length ? [place, el("section", {}, table(["mechanism", "credit", "having it", "without", "verdict"], own.map((one) => [(one.in_baseline ? one.name + " (baseline's)" : one.name), limits([one.credit, one.low, one.high, one.having], true), one.having, one.lacking, one.verdict])))] : []),
      found.confounded.length ? el("section", {}, el("h3", {}, "Cannot be told apart"), el("ul", {}, found.confounded.map((one) => el("li", {}, one.says)))) : null);
    if (own.length) { const rows = [...own].reverse();
      place.style.height = Math.max(360, 22 * rows.length + 90) + "px";
      plot(place, () => [{ type: "scatter", mode: "markers", x: rows.map((one) => one.credit), y: rows.map((one) => escaped(one.name)), text: rows.map((one) => one.verdict), marker: { color: rows.map((one) => (one.verdict === "pays" ? style("--good") : one.verdict === "costs" ? style("--bad") : style("--soft"))), size: 9 },
        error_x: { type: "data", symmetric: false, array: rows.map((one) => one.high - one.credit), arrayminus: rows.map((one) => one.credit - one.low), thickness: 1, color: style("--soft") } }], { xaxis: { title: { text: "points of Overall" }, zerolinecolor: style("--soft") }, yaxis: { range: [-0.8, rows.length - 0.2] } }, "Credit of every mechanism."); }
  },
  failures(kept) {
    const failed = kept.filter((c) => c.failure), kinds = new Map();
    for (const c of failed) { const key = `${c.failure.stage}: ${c.failure.kind}`; kinds.has(key) ? kinds.get(key).push(c) : kinds.set(key, [c]); }
    fill(el("h2", {}, "Failures and refusals"), failed.length ? null : el("p", {}, "None among what is shown."), ...[...kinds].sort((a, b) => b[1].length - a[1].length).map(([key, own]) =>
      el("section", {}, el("h3", {}, `${key} (${own.length})`), el("dl", {}, own.slice(0, 100).flatMap((c) => [el("dt", {}, candidateLink(c)), el("dd", {}, c.failure.message)])), own.length > 100 ? el("p", { class: "soft" }, `The first 100 of ${own.length}; the filter above narrows them.`) : null)));
  },
  async candidate(kept, query, [id]) {
    const index = byId.get(id);
    if (index === undefined) { fill(el("p", {}, "There is no such candidate in this page.")); return; }
    const mine = turn, c = all[index], more = await detail(index), children = all.filter((one) => one.parents.includes(index));
    const above = more.changed && more.changed.lines.length && byId.has(more.changed.from) ? await detail(byId.get(more.changed.from)) : null;
    if (mine !== turn) return;
    const part = (title, ...content) => el("section", {}, el("h3", {}, title), ...content);
    const place = el("div", { class: "plot half" }), names = Object.keys(more.curves || {}).sort(), first = ["reward_mean", "entropy", "kl", ...names].find((name) => names.includes(name));
    const draw = (name) => plot(place, () => banded(more.curves[name], c.name, PALETTE[0]), { showlegend: false, xaxis: { title: { text: "training step" } }, yaxis: { title: { text: name } } }, `${name} over training steps.`);
    document.title = `${c.name} · ${run.title}`;
    fill(el("h2", {}, c.name, " ", el("span", { class: "soft" }, c.id)),
      el("p", { class: "noprint" }, link("#/compare/" + [c.parents.length ? all[c.parents[0]].id : all[run.baseline ?? index].id, c.id].map(encodeURIComponent).join("/"), "compare with the parent"), " · ", link("#/curves?ids=" + encodeURIComponent([run.baseline === null ? "" : all[run.baseline].id, c.id].filter(Boolean).join(",")), "curves beside the baseline")),
      el("div", { class: "flow" },
        part("At a glance", facts({ outcome: standing(c), generation: c.generation, author: c.author, arm: c.arm, Overall: limits(c.overall), "to the baseline": limits(c.delta, true) + (c.verdict ? ` (${c.verdict})` : ""), "training tokens": c.tokens ? count(c.tokens) : null, mechanisms: c.mechanisms, change: c.change,
          parents: el("span", {}, listed(c.parents.map((p) => all[p]))), children: el("span", {}, listed(children)) })),
        more.benchmarks && more.benchmarks.length ? part("Benchmarks, percent", scores(more.benchmarks)) : null,
        more.deltas && Object.keys(more.deltas).length ? part("Paired differences of Overall", facts(Object.fromEntries(Object.entries(more.deltas).map(([name, d]) => ["to " + name, limits([d.estimate, d.low, d.high, d.seeds], true)])))) : null,
        more.proposal ? part("Proposal", facts({ ...more.proposal, ...more.proposal.content }, ["content", "arm", "generation", "slot", "index", "name", "parent_ids", "change", "direction", "call_id"])) : null,
        more.ablation ? part("Ablation", ...ablationOf(more.ablation)) : null,
        more.reflection ? part("Reflection", ...prose(more.reflection.markdown), el("p", { class: "soft" }, "written by " + more.reflection.written_by)) : null,
        more.failures && more.failures.length ? part("Failures", ...more.failures.map((one) => facts(one, ["row_key", "protocol", "candidate_id", "name"]))) : null,
        more.examination && more.examination.length ? part("Examination", ...examinationOf(more.examination)) : null,
        more.replication ? part("Replication", facts(more.replication, ["row_key", "protocol", "candidate_id"])) : null,
        more.rungs && more.rungs.length ? part("Ladder", table(["rung", "decision", "why", "Overall", "seeds", "steps", "tokens"], more.rungs.map((one) => [one.rung, one.decision, one.message, one.value === null ? "" : one.value.toFixed(1), one.seeds.length, one.steps, count(one.tokens)]))) : null,
        more.verification ? part("Gate", ...gateOf(more.verification)) : null),
      names.length ? part("Training", el("p", { class: "noprint" }, el("label", {}, "metric ", selectOf(names, first, draw))), el("p", { class: "soft" }, BANDS), place) : null,
      more.completions && more.completions.length ? part("Sample completions", el("p", { class: "soft" }, "The first that was right, wrong and malformed, and the longest; of training and of the search split."), ...completionsOf(more.completions)) : null,
      above ? part("Changes to the parent's file", diffOf(more.changed.lines, above.source, more.source, all[byId.get(more.changed.from)].name, c.name)) : null,
      more.source ? part("Source", el("pre", { tabindex: "0" }, highlighted(more.source))) : null);
    if (names.length) draw(first);
  },
  async compare(kept, query, ids) {
    const mine = turn, known = ids.filter((id) => byId.has(id)), pair = known.map((id) => all[byId.get(id)]), more = await Promise.all(known.map((id) => detail(byId.get(id))));
    if (mine !== turn) return;
    if (pair.length < 2) { fill(el("p", {}, "Two candidates are compared: #/compare/ONE/OTHER.")); return; }
    const choose = (place) => selectOf(offered(kept.filter((c) => c.tokens || c.overall), pair[place]), pair[place].id, (id) => { location.hash = "#/compare/" + [0, 1].map((i) => encodeURIComponent(i === place ? id : pair[i].id)).join("/"); }, (id) => all[byId.get(id)].name);
    const rows = metricNames.map((name) => [name, ...pair.map((c) => (name === "Overall" ? limits(c.overall) : name === "delta" ? limits(c.delta, true) : shortly(c, name)))]);
    fill(el("h2", {}, "Side by side"), el("p", { class: "noprint" }, el("label", {}, "one ", choose(0)), " ", el("label", {}, "other ", choose(1))),
      el("section", {}, el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "metric"), pair.map((c) => el("th", { scope: "col", class: "n" }, candidateLink(c))))), el("tbody", {}, rows.map((row) => el("tr", {}, el("th", { scope: "row" }, row[0]), row.slice(1).map((text) => el("td", { class: "n" }, text))))))),
      el("div", { class: "columns" }, pair.map((c, i) => el("section", {}, el("h3", {}, c.name), el("p", { class: "soft" }, c.change || ""), more[i].source ? el("pre", { tabindex: "0" }, highlighted(more[i].source)) : null))));
  },
};

// ---- parts of pages

// Ids that a list offers: the best of those that the filter keeps, and what is chosen.
function offered(kept, own) {
  const best = [...kept].sort((a, b) => (b.overall ? b.overall[0] : -1) - (a.overall ? a.overall[0] : -1)).slice(0, OFFERED);
  return (own && !best.includes(own) ? [own, ...best] : best).map((c) => c.id);
}
function selectOf(names, value, onchange, label) {
  const made = el("select", {}, names.map((name) => el("option", { value: name }, label ? label(name) : name)));
  made.value = value;
  made.addEventListener("change", () => onchange(made.value));
  return made;
}
function table(head, rows) {
  return el("table", {}, el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, i) => (i ? el("td", {}, String(cell)) : el("th", { scope: "row" }, String(cell))))))));
}
function gateOf({ report, admitted, seconds, written_by }) {
  const near = (found) => (found || []).slice(0, 3).map(([name, distance]) => `${name} ${distance}`).join(", ");
  const checks = report.checks || [], told = checks.some((one) => one.message) ? [(one) => one.message ?? ""] : [];
  return [el("p", {}, `${admitted ? "Admitted" : "Refused"} after ${seconds.toFixed(1)} s by ${written_by}.`),
    table(["check", "result", "what it proves", ...told.map(() => "message")], checks.map((one) => [one.name, one.passed ? "passed" : "failed", one.proves ?? "", ...told.map((text) => text(one))])),
    facts({ ...report, nearest: near(report.nearest), nearest_archived: near(report.nearest_archived) }, ["checks", "fingerprint", "candidate_name", "admitted", "seconds", "confinement"])];
}
const span = (d) => (d ? limits([d.estimate, d.low, d.high, d.seeds], true) : "");
// The columns are those of poise_core.render.lines.examination_cells; what was not measured is a dash.
function examinationOf(rows) {
  const at = (value, rate) => (value === null ? "-" : value.toFixed(1) + (rate === null ? "" : ` at x${+rate.toPrecision(3)}`)), one = rows[0];
  return [table(["condition", "candidate", "baseline", "difference", "worst seed", "collapsed", "verdict"], rows.map((row) => [row.condition, at(row.overall, row.rate), at(row.baseline_overall, row.baseline_rate),
    row.delta === null ? "-" : limits([row.delta, row.low, row.high, row.seeds.length], true), row.worst === null ? "-" : `${row.worst.toFixed(1)} (${row.baseline_worst.toFixed(1)})`,
    row.collapsed === null ? "-" : `${row.collapsed} of ${row.seeds.length}, at most ${Math.round(100 * (row.collapse_bound ?? 0))} %`, row.verdict])),
    el("dl", {}, rows.flatMap((row) => [el("dt", {}, row.condition), el("dd", {}, row.message)])),
    el("p", { class: "soft" }, `Seeds ${one.seeds.join(", ")}, sealed set ${one.sealed_set}, examination ${one.examination}; worst seed of the baseline in brackets.` + (one.declared ? "" : " It was no champion candidate."))];
}
function ablationOf(found) {
  const beyond = found.interactions.filter((one) => one.beyond_noise);
  return [el("p", {}, found.says + "."),
    ...[["mechanism", found.mechanisms], ["change to the baseline", found.changes]].map(([what, rows]) => rows.length ? table([what, "contribution", "alone, over the baseline", "verdict"], rows.map((one) => [one.name, span(one.contribution), span(one.alone), one.verdict])) : null),
    found.interactions.length ? el("p", {}, `Interactions of ${found.interactions.length} pairs beyond noise: ` + (beyond.map((one) => `${one.pair.join(" with ")} ${span(one.effect)}`).join("; ") || "none") + ".") : null,
    Object.keys(found.numbers).length ? table(["number", "value: difference to the candidate"], Object.entries(found.numbers).map(([name, points]) => [name, points.map((one) => `${+one.value.toPrecision(4)}: ${one.outcome === "own" ? "own" : span(one.delta) || one.outcome}`).join("   ")])) : null,
    found.simplified ? el("details", {}, el("summary", {}, "The simplified file"), el("pre", { tabindex: "0" }, highlighted(found.simplified.source))) : null];
}
function completionsOf(rows) {
  const groups = new Map();
  for (const one of rows) { const key = `${one.origin === "train" ? `training, step ${one.step}` : one.benchmark}, seed ${one.seed}`; groups.set(key, [...(groups.get(key) || []), one]); }
  return [...groups].map(([key, own]) => el("details", {}, el("summary", {}, `${key}: ${own.map((one) => one.kind).join(", ")}`), ...own.map((one) => el("dl", {},
    el("dt", {}, one.kind), el("dd", {}, `${one.tokens} tokens, ${one.correctness > 0 ? "right" : one.format_valid ? "wrong" : "no answer that parses"}${one.truncated ? ", cut off" : ""}`), el("dt", {}, "prompt"), el("dd", {}, one.prompt), el("dt", {}, "completion"), el("dd", {}, one.completion)))));
}
// Headings, lists and paragraphs of Markdown; everything else in it stays as it was written.
function prose(text) {
  const parts = [];
  for (const line of text.split("\n")) {
    const [, heading, item] = line.match(/^#{1,6} +(.*)$|^[-*] +(.*)$/) || [];
    if (heading !== undefined) parts.push(el("h4", {}, heading));
    else if (item === undefined) { if (line.trim()) parts.push(el("p", {}, line)); }
    else { if (parts.at(-1)?.tagName !== "UL") parts.push(el("ul", {})); parts.at(-1).append(el("li", {}, item)); }
  }
  return parts;
}
const listed = (own) => (own.length ? own.flatMap((c, i) => (i ? [", ", candidateLink(c)] : [candidateLink(c)])) : "none");
function facts(values, without) {
  const kept = Object.entries(values).filter(([name, value]) => !(without || []).includes(name) && value !== null && value !== "" && value !== undefined && !(Array.isArray(value) && !value.length));
  return el("dl", {}, kept.flatMap(([name, value]) => [el("dt", {}, name.replace(/_/g, " ")), el("dd", {}, plain(value))]));
}
function plain(value) {
  if (value instanceof Node) return value;
  if (Array.isArray(value) && value.every((one) => typeof one === "number")) return value.map(plain).join(", ");
  if (Array.isArray(value)) return el("span", {}, value.map((one, i) => [i ? el("br") : null, plain(one)]).flat());
  if (value && typeof value === "object") return facts(value);
  return typeof value === "number" && !Number.isInteger(value) ? String(+value.toPrecision(5)) : String(value);
}
function scores(rows) {
  return el("table", {}, el("thead", {}, el("tr", {}, ["benchmark", "mean", "baseline", "by seed"].map((name, i) => el("th", { scope: "col", class: i ? "n" : "" }, name)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, el("th", { scope: "row" }, row.name), el("td", { class: "n" }, row.mean.toFixed(1)), el("td", { class: "n" }, row.baseline === null ? "" : row.baseline.toFixed(1)), el("td", { class: "n" }, Object.values(row.seeds).map((one) => one.toFixed(1)).join("  "))))));
}
// The unified diff, with 3 lines around every change, from where the files differ: [from, to, from, to] by line.
function diffOf(changes, before, after, old, name) {
  const was = before.split("\n"), is = after.split("\n"), hunks = [], lines = [];
  for (const one of changes) { const last = hunks.at(-1); if (last && one[0] - last.at(-1)[1] <= 6) last.push(one); else hunks.push([one]); }
  const add = (kind, mark, text) => lines.push(el("span", { class: kind }, mark + text + "\n"));
  const range = (begin, end) => (end - begin === 1 ? `${begin + 1}` : `${end > begin ? begin + 1 : begin},${end - begin}`);
  add("place", "--- ", old);
  add("place", "+++ ", name);
  for (const hunk of hunks) {
    const [first, last] = [hunk[0], hunk.at(-1)], before_it = Math.min(3, first[0]), after_it = Math.min(3, was.length - last[1]);
    add("place", "@@ ", `-${range(first[0] - before_it, last[1] + after_it)} +${range(first[2] - before_it, last[3] + after_it)} @@`);
    let at = first[0] - before_it;
    for (const [from, to, put, end] of hunk) {
      for (; at < from; at++) add("same", " ", was[at]);
      for (; at < to; at++) add("removed", "-", was[at]);
      for (let i = put; i < end; i++) add("added", "+", is[i]);
    }
    for (const end = at + after_it; at < end; at++) add("same", " ", was[at]);
  }
  return el("pre", { tabindex: "0", class: "diff" }, lines);
}
const TOKEN = /("""[\s\S]*?"""|'''[\s\S]*?'''|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|(#[^\n]*)|\b(def|class|return|if|elif|else|for|in|while|import|from|as|with|and|or|not|is|None|True|False|lambda|pass|raise)\b|(@[A-Za-z_.]+)/g;
function highlighted(source) {
  const parts = []; let last = 0;
  for (const found of source.matchAll(TOKEN)) {
    parts.push(source.slice(last, found.index), el("span", { class: found[1] ? "s" : found[2] ? "c" : found[3] ? "k" : "d" }, found[0]));
    last = found.index + found[0].length;
  }
  return [...parts, source.slice(last)];
}

// ---- the address decides what is shown

const NAMES = { tree: "Tree", plot: "Two metrics", search: "Search and cost", curves: "Curves", table: "Table", credit: "Credit", failures: "Failures" };
const go = (view, query) => { location.hash = `#/${view}?` + new URLSearchParams(query); };
let turn = 0;
async function show() {
  const mine = ++turn, [path, query] = location.hash.replace(/^#\//, "").split("?"), [view, ...rest] = (path || "tree").split("/");
  const name = Object.hasOwn(views, view) ? view : "tree";
  document.getElementById("views").replaceChildren(...Object.entries(NAMES).map(([key, label]) => el("a", { href: "#/" + key, "aria-current": key === name ? "page" : null }, label)));
  document.title = run.title;
  for (const old of main.querySelectorAll(".plot")) Plotly.purge(old);
  if (document.readyState === "loading") fill(el("p", { class: "soft" }, "Reading the page ..."));
  try {
    await views[name](shown(), new URLSearchParams(query || ""), rest.map(decodeURIComponent));
  } catch (error) {
    if (mine === turn) fill(el("p", { class: "bad" }, "This view cannot be shown: " + error.message));
    throw error;
  }
}
const about = document.getElementById("about");
about.textContent = `protocol ${run.protocol} · policy ${run.policy} · ${all.length} candidates · ${run.counted}${run.untuned ? " · " + run.untuned : ""}`;
document.getElementById("filter").addEventListener("submit", (event) => event.preventDefault());
let waiting = 0;
for (const one of [words, chosen, from]) one.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(show, 150); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (!document.documentElement.classList.contains("printing")) show(); });
addEventListener("beforeprint", () => printing(true));
addEventListener("afterprint", () => printing(false));
matchMedia("print").addEventListener("change", (media) => printing(media.matches));
addEventListener("hashchange", () => { show(); main.focus({ preventScroll: true }); scrollTo(0, 0); });
show();
