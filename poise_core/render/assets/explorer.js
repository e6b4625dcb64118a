"use strict";
// The page of `poise explore`. Every text of the run is data: it enters the page as text nodes only, and plots get it escaped.
const run = JSON.parse(document.getElementById("overview").textContent);
const all = run.candidates;
const byId = new Map(all.map((c, i) => [c.id, i]));
const main = document.getElementById("main");
const CHUNK = run.chunk;
const SYMBOLS = { baseline: "star", scored: "circle", reference: "diamond", stopped: "square", failed: "x", refused: "triangle-down", unfinished: "circle-open" };
const LESS_IS_BETTER = new Set(["tokens", "completion length", "seed deviation", "generation"]);
const ROWS = 200;
const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8250df", "#999999"];

// ---- elements

function el(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "onclick") made.addEventListener("click", value);
    else if (name === "class") made.className = value;
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) made.append(child);
  return made;
}
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

// ---- details, decompressed one chunk at a time

const chunks = new Map();
async function detail(index) {
  const number = Math.floor(index / CHUNK);
  if (!chunks.has(number)) chunks.set(number, unpacked(document.getElementById("details-" + number).textContent));
  return (await chunks.get(number))[index % CHUNK];
}
async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (one) => one.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
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
const words = document.getElementById("words"), chosen = document.getElementById("outcome"), from = document.getElementById("from");
for (const name of [...new Set(all.map((c) => c.outcome))]) chosen.append(el("option", { value: name }, name));
function shown() {
  const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
  const kept = all.filter((c) => {
    if (chosen.value && c.outcome !== chosen.value) return false;
    if (c.generation < Number(from.value || 0)) return false;
    const text = [c.name, c.id, c.mechanisms, c.change, c.state, c.outcome, c.failure ? c.failure.kind + " " + c.failure.message : ""].join(" ").toLowerCase();
    return wanted.every((word) => text.includes(word));
  });
  document.getElementById("shown").textContent = `${kept.length} of ${all.length} shown`;
  return kept;
}

// ---- plots

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
function layout(more) {
  const axis = { gridcolor: style("--line"), zerolinecolor: style("--line"), automargin: true };
  return { paper_bgcolor: style("--back"), plot_bgcolor: style("--back"), font: { color: style("--ink"), size: 13 }, margin: { l: 60, r: 20, t: 30, b: 50 },
    hovermode: "closest", legend: { orientation: "h", y: 1.08 }, ...more, xaxis: { ...axis, ...more.xaxis }, yaxis: { ...axis, ...more.yaxis } };
}
function plot(place, traces, more, label) {
  place.setAttribute("role", "group");
  place.setAttribute("aria-label", label + " The table view has the same numbers.");
  Plotly.newPlot(place, traces, layout(more), { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] });
  place.on("plotly_click", (event) => {
    const index = event.points[0].customdata;
    if (index !== undefined && index !== null) location.hash = candidateHash(all[index]);
  });
}
const hover = (c) =>
  [`<b>${escaped(c.name)}</b>  ${escaped(c.state || c.outcome)}`, c.overall ? "Overall " + limits(c.overall) : "", c.delta ? "to the baseline " + limits(c.delta, true) : "",
    escaped((c.change || "").slice(0, 90)), c.failure ? escaped(`${c.failure.kind}: ${c.failure.message}`.slice(0, 110)) : ""].filter(Boolean).join("<br>");
const deltas = all.filter((c) => c.outcome === "scored").map((c) => metric(c, "delta")).filter((value) => value !== null);
const reach = Math.max(1, ...deltas.map(Math.abs));
function markers(kept, x, y, more) {
  return Object.keys(SYMBOLS).filter((name) => kept.some((c) => c.outcome === name)).map((name, place) => {
    const own = kept.filter((c) => c.outcome === name);
    return { type: "scatter", mode: "markers", name, x: own.map(x), y: own.map(y), customdata: own.map((c) => byId.get(c.id)), text: own.map(hover), hoverinfo: "text",
      marker: { symbol: SYMBOLS[name], size: name === "baseline" ? 15 : 10, line: { width: 1, color: style("--soft") }, color: own.map((c) => metric(c, "delta") ?? 0),
        cmin: -reach, cmax: reach, colorscale: "RdBu", reversescale: true, showscale: place === 0, colorbar: { title: { text: "delta", side: "right" }, thickness: 12 } },
      ...(more ? more(own) : {}) };
  });
}

const views = {
  tree(kept) {
    const place = el("div", { class: "plot" }), x = [], y = [], in_view = new Set(kept.map((c) => c.id));
    for (const c of all) for (const [rank, parent] of c.parents.entries()) {
      if (rank === 0 && in_view.has(c.id)) { x.push(all[parent].x, c.x, null); y.push(all[parent].y, c.y, null); }
    }
    main.replaceChildren(el("h2", {}, "The tree"), el("p", { class: "soft" }, "A column is a generation; colour is the difference to the baseline (blue is better), the sign is the outcome. A click opens a candidate."), place);
    plot(place, [{ type: "scatter", mode: "lines", x, y, hoverinfo: "skip", showlegend: false, line: { color: style("--line"), width: 1 } },
      ...markers(kept, (c) => c.x, (c) => c.y)], { xaxis: { title: { text: "generation" }, dtick: 1 }, yaxis: { visible: false, autorange: "reversed" } }, "Tree of candidates by generation.");
  },
  plot(kept, query) {
    const x = query.get("x") || "tokens", y = query.get("y") || "Overall";
    const choose = (name, value) => el("label", {}, name + " ", selectOf(metricNames, value, (next) => go("plot", { x, y, [name]: next })));
    const place = el("div", { class: "plot" }), known = kept.filter((c) => metric(c, x) !== null && metric(c, y) !== null);
    const better = (name, one, other) => (LESS_IS_BETTER.has(name) ? one < other : one > other);
    const front = known.filter((c) => !known.some((o) => o !== c && !better(x, metric(c, x), metric(o, x)) && !better(y, metric(c, y), metric(o, y)) &&
      (better(x, metric(o, x), metric(c, x)) || better(y, metric(o, y), metric(c, y))))).sort((a, b) => metric(a, x) - metric(b, x));
    main.replaceChildren(el("h2", {}, "Two metrics"), el("p", { class: "noprint" }, choose("x", x), " ", choose("y", y)),
      el("p", { class: "soft" }, `The line joins the ${front.length} candidates that no other beats in both. Bars are 95 % intervals.`), place);
    const bars = (own, name) => { const of = (c) => (name === "Overall" ? c.overall : name === "delta" ? c.delta : null);
      return { type: "data", symmetric: false, visible: own.some((c) => of(c) && of(c)[1] !== null), thickness: 1, color: style("--soft"),
        array: own.map((c) => (of(c) && of(c)[2] !== null ? of(c)[2] - of(c)[0] : 0)), arrayminus: own.map((c) => (of(c) && of(c)[1] !== null ? of(c)[0] - of(c)[1] : 0)) }; };
    plot(place, [{ type: "scatter", mode: "lines", name: "Pareto front", x: front.map((c) => metric(c, x)), y: front.map((c) => metric(c, y)), hoverinfo: "skip", line: { color: style("--mark"), width: 1, dash: "dot" } },
      ...markers(known, (c) => metric(c, x), (c) => metric(c, y), (own) => ({ error_x: bars(own, x), error_y: bars(own, y) }))],
      { xaxis: { title: { text: x } }, yaxis: { title: { text: y } } }, `${y} over ${x}.`);
  },
  search() {
    const one = el("div", { class: "plot half" }), two = el("div", { class: "plot half" }), three = run.cost.calls ? el("div", { class: "plot half" }) : null;
    main.replaceChildren(el("h2", {}, "The search over what it spent"), el("p", { class: "soft" }, "Best is the shrunken estimate of the candidate that the run would name at that moment; it may fall."), one, el("h2", {}, "Cost"), el("div", { class: "columns" }, two, three));
    const scored = all.filter((c) => c.overall && c.outcome !== "reference"), at = new Map(run.cost.names.map((name, i) => [name, run.cost.tokens[i]]));
    const beside = Object.entries(run.beside || {}).map(([name, steps], i) => ({ type: "scatter", mode: "lines", name: escaped(name), line: { shape: "hv", width: 2, color: PALETTE[(i + 1) % PALETTE.length] }, x: steps.map((s) => s.tokens), y: steps.map((s) => s.best) }));
    plot(one, [{ type: "scatter", mode: "lines+markers", name: beside.length ? escaped(run.title) + ", best so far" : "best so far", line: { shape: "hv", width: 2, color: style("--mark") }, x: run.best.map((s) => s.tokens), y: run.best.map((s) => s.best) }, ...beside,
      ...markers(scored, (c) => at.get(c.name) ?? null, (c) => c.overall[0])], { xaxis: { title: { text: "training tokens spent" } }, yaxis: { title: { text: "Overall, percent" } } }, "Overall over training tokens.");
    plot(two, [{ type: "scatter", mode: "lines", name: "training tokens", y: run.cost.tokens, x: run.cost.tokens.map((_, i) => i + 1), text: run.cost.names.map(escaped), line: { color: style("--link") } }],
      { xaxis: { title: { text: "candidates trained" } }, yaxis: { title: { text: "training tokens" } } }, "Training tokens over candidates.");
    if (three) plot(three, [{ type: "scatter", mode: "lines", name: "dollars", x: run.cost.calls.at, y: run.cost.calls.dollars, line: { color: style("--link"), shape: "hv" } }], { yaxis: { title: { text: "dollars for models" } } }, "Dollars over time.");
  },
  async curves(kept, query) {
    const picked = (query.get("ids") || [run.baseline, ...all.map((c, i) => i).filter((i) => all[i].overall).sort((a, b) => all[b].overall[0] - all[a].overall[0]).slice(0, 3)].filter((i) => i !== null).map((i) => all[i].id).join(",")).split(",").filter((id) => byId.has(id));
    const ids = [...new Set(picked)], found = await Promise.all(ids.map((id) => detail(byId.get(id))));
    const names = [...new Set(found.flatMap((one) => Object.keys(one.curves || {})))].sort(), name = query.get("m") && names.includes(query.get("m")) ? query.get("m") : names.includes("reward_mean") ? "reward_mean" : names[0];
    const place = el("div", { class: "plot" });
    main.replaceChildren(el("h2", {}, "Training curves"), el("p", { class: "noprint" }, el("label", {}, "metric ", selectOf(names, name, (m) => go("curves", { ids: ids.join(","), m }))), " ",
      el("label", {}, "add ", selectOf(["", ...kept.filter((c) => c.tokens).map((c) => c.id)], "", (id) => go("curves", { ids: [...ids, id].join(","), m: name }), (id) => (id ? all[byId.get(id)].name : "a candidate")))),
      el("p", {}, ids.map((id) => el("button", { class: "noprint", onclick: () => go("curves", { ids: ids.filter((one) => one !== id).join(","), m: name }), "aria-label": "remove " + all[byId.get(id)].name }, all[byId.get(id)].name + " ×"))),
      el("p", { class: "soft" }, "Lines are means over seeds, bands reach from the lowest to the highest seed."), place);
    const traces = found.flatMap((one, i) => { const curve = (one.curves || {})[name], color = PALETTE[i % PALETTE.length], label = escaped(all[byId.get(ids[i])].name); if (!curve) return [];
      return [{ x: [...curve.step, ...[...curve.step].reverse()], y: [...curve.high, ...[...curve.low].reverse()], fill: "toself", fillcolor: color + "22", line: { width: 0 }, hoverinfo: "skip", showlegend: false, type: "scatter" },
        { x: curve.step, y: curve.mean, name: label, mode: "lines", line: { color, width: 2 }, type: "scatter" }]; });
    plot(place, traces, { xaxis: { title: { text: "training step" } }, yaxis: { title: { text: name || "" } } }, `${name} over training steps.`);
  },
  table(kept, query) {
    const by = query.get("by") || "Overall", up = query.get("up") === "1", most = Number(query.get("rows") || ROWS), columns = metricNames.filter((name) => name !== "Overall" && name !== "delta");
    const value = (c) => (by === "name" ? c.name.toLowerCase() : by === "outcome" ? c.outcome : metric(c, by));
    const sorted = [...kept].sort((a, b) => { const one = value(a), other = value(b); if (one === null || other === null) return (one === null) - (other === null); return (one < other ? -1 : one > other ? 1 : 0) * (up ? 1 : -1); });
    const head = (name, numeric) => el("th", { scope: "col", class: numeric ? "n" : "", "aria-sort": by === name ? (up ? "ascending" : "descending") : "none" }, el("button", { type: "button", onclick: () => go("table", { by: name, up: by === name && !up ? "1" : "0" }) }, name));
    const rows = sorted.slice(0, most).map((c) => el("tr", {}, el("td", {}, candidateLink(c)), el("td", {}, c.state || c.outcome), el("td", { class: "n" }, limits(c.overall)), el("td", { class: "n " + (c.verdict === "better" ? "good" : c.verdict === "worse" ? "bad" : "") }, limits(c.delta, true)),
      columns.map((name) => el("td", { class: "n" }, metric(c, name) === null ? "" : name === "tokens" ? count(c.tokens) : String(+metric(c, name).toFixed(2))))));
    main.replaceChildren(el("h2", {}, "Candidates"), el("section", {}, el("table", {}, el("caption", {}, `Intervals are 95 %; deltas are paired with the baseline by seed and problem. ${run.counted}.`),
      el("thead", {}, el("tr", {}, head("name"), head("outcome"), head("Overall", true), head("delta", true), columns.map((name) => head(name, true)))), el("tbody", {}, rows)),
      sorted.length > most ? el("p", {}, el("button", { onclick: () => go("table", { by, up: up ? "1" : "0", rows: most + 1000 }) }, `show more of ${sorted.length}`)) : null));
  },
  credit() {
    const found = run.credit, own = found.mechanisms, place = el("div", { class: "plot" });
    main.replaceChildren(el("h2", {}, "Credit of mechanisms"), el("p", {}, found.says + "."),
      el("p", { class: "soft" }, `What having a mechanism is worth in points of Overall, by a ridge regression over ${found.candidates} scored candidates; bars are 95 %. ${found.left_out} without a score are left out. An ablation tells for one candidate what each does.`),
      ...(own.length ? [place, el("section", {}, table(["mechanism", "credit", "having it", "without", "verdict"], own.map((one) => [(one.in_baseline ? one.name + " (baseline's)" : one.name), limits([one.credit, one.low, one.high, one.having], true), one.having, one.lacking, one.verdict])))] : []),
      found.confounded.length ? el("section", {}, el("h3", {}, "Cannot be told apart"), el("ul", {}, found.confounded.map((one) => el("li", {}, one.says)))) : null);
    if (own.length) { const rows = [...own].reverse();
      place.style.height = Math.max(360, 22 * rows.length + 90) + "px";
      plot(place, [{ type: "scatter", mode: "markers", x: rows.map((one) => one.credit), y: rows.map((one) => escaped(one.name)), text: rows.map((one) => one.verdict), marker: { color: rows.map((one) => (one.verdict === "pays" ? style("--good") : one.verdict === "costs" ? style("--bad") : style("--soft"))), size: 9 },
        error_x: { type: "data", symmetric: false, array: rows.map((one) => one.high - one.credit), arrayminus: rows.map((one) => one.credit - one.low), thickness: 1, color: style("--soft") } }], { xaxis: { title: { text: "points of Overall" } }, yaxis: { automargin: true } }, "Credit of every mechanism."); }
  },
  failures(kept) {
    const failed = kept.filter((c) => c.failure), kinds = new Map();
    for (const c of failed) { const key = `${c.failure.stage}: ${c.failure.kind}`; kinds.set(key, [...(kinds.get(key) || []), c]); }
    main.replaceChildren(el("h2", {}, "Failures and refusals"), failed.length ? null : el("p", {}, "None among what is shown."), ...[...kinds].sort((a, b) => b[1].length - a[1].length).map(([key, own]) =>
      el("section", {}, el("h3", {}, `${key} (${own.length})`), el("dl", {}, own.slice(0, 100).flatMap((c) => [el("dt", {}, candidateLink(c)), el("dd", {}, c.failure.message)])))));
  },
  async candidate(kept, query, [id]) {
    const index = byId.get(id);
    if (index === undefined) { main.replaceChildren(el("p", {}, "There is no such candidate in this page.")); return; }
    const c = all[index], more = await detail(index), children = all.filter((one) => one.parents.includes(index));
    const part = (title, ...content) => el("section", {}, el("h3", {}, title), ...content);
    const place = el("div", { class: "plot half" }), names = Object.keys(more.curves || {}).sort();
    document.title = `${c.name} · ${run.title}`;
    main.replaceChildren(el("h2", {}, c.name, " ", el("span", { class: "soft" }, c.id)),
      el("p", { class: "noprint" }, link("#/compare/" + [c.parents.length ? all[c.parents[0]].id : all[run.baseline ?? index].id, c.id].map(encodeURIComponent).join("/"), "compare with the parent"), " · ", link("#/curves?ids=" + encodeURIComponent([run.baseline === null ? "" : all[run.baseline].id, c.id].filter(Boolean).join(",")), "curves beside the baseline")),
      el("div", { class: "columns" },
        part("At a glance", facts({ outcome: c.state || c.outcome, generation: c.generation, author: c.author, arm: c.arm, Overall: limits(c.overall), "to the baseline": limits(c.delta, true) + (c.verdict ? ` (${c.verdict})` : ""), "training tokens": c.tokens ? count(c.tokens) : null, mechanisms: c.mechanisms, change: c.change }),
          el("dl", {}, el("dt", {}, "parents"), el("dd", {}, listed(c.parents.map((p) => all[p]))), el("dt", {}, "children"), el("dd", {}, listed(children)))),
        more.benchmarks && more.benchmarks.length ? part("Benchmarks, percent", scores(more.benchmarks)) : null,
        more.deltas && Object.keys(more.deltas).length ? part("Paired differences of Overall", facts(Object.fromEntries(Object.entries(more.deltas).map(([name, d]) => ["to " + name, limits([d.estimate, d.low, d.high, d.seeds], true)])))) : null,
        more.proposal ? part("Proposal", facts(more.proposal, ["proposal_id", "row_key", "protocol"])) : null,
        more.ablation ? part("Ablation", ...ablationOf(more.ablation)) : null,
        more.reflection ? part("Reflection", facts(more.reflection, ["row_key", "protocol", "candidate_id"])) : null,
        more.failures && more.failures.length ? part("Failures", ...more.failures.map((one) => facts(one, ["row_key", "protocol", "candidate_id", "name"]))) : null,
        more.examination && more.examination.length ? part("Examination", ...more.examination.map((one) => facts(one, ["row_key", "protocol", "candidate_id"]))) : null,
        more.replication ? part("Replication", facts(more.replication, ["row_key", "protocol", "candidate_id"])) : null,
        more.rungs && more.rungs.length ? part("Ladder", ...more.rungs.map((one) => facts(one, ["row_key", "protocol", "candidate_id"]))) : null,
        more.verification ? part("Gate", facts(more.verification, ["row_key", "candidate_id", "fingerprint"])) : null),
      names.length ? part("Training", place) : null,
      more.completions && more.completions.length ? part("Sample completions", el("p", { class: "soft" }, "The first that was right, wrong and malformed, and the longest; of training and of the search split."), ...completionsOf(more.completions)) : null,
      more.diff ? part("Changes to the parent's file", diffOf(more.diff)) : null,
      more.source ? part("Source", el("pre", { tabindex: "0" }, highlighted(more.source))) : null);
    if (names.length) {
      const drawn = ["reward_mean", "entropy", "kl"].filter((name) => names.includes(name)).concat(names).slice(0, 1)[0], curve = more.curves[drawn];
      plot(place, [{ x: curve.step, y: curve.mean, type: "scatter", mode: "lines", name: drawn, line: { color: style("--link") } }], { xaxis: { title: { text: "training step" } }, yaxis: { title: { text: drawn } } }, `${drawn} over training steps.`);
    }
  },
  async compare(kept, query, ids) {
    const known = ids.filter((id) => byId.has(id)), pair = known.map((id) => all[byId.get(id)]), more = await Promise.all(known.map((id) => detail(byId.get(id))));
    if (pair.length < 2) { main.replaceChildren(el("p", {}, "Two candidates are compared: #/compare/ONE/OTHER.")); return; }
    const choose = (place) => selectOf(all.filter((c) => c.tokens || c.overall).map((c) => c.id), pair[place].id, (id) => { location.hash = "#/compare/" + [0, 1].map((i) => encodeURIComponent(i === place ? id : pair[i].id)).join("/"); }, (id) => all[byId.get(id)].name);
    const rows = metricNames.map((name) => [name, ...pair.map((c) => (name === "Overall" ? limits(c.overall) : name === "delta" ? limits(c.delta, true) : metric(c, name) === null ? "" : String(+metric(c, name).toFixed(2))))]);
    main.replaceChildren(el("h2", {}, "Side by side"), el("p", { class: "noprint" }, el("label", {}, "one ", choose(0)), " ", el("label", {}, "other ", choose(1))),
      el("section", {}, el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "metric"), pair.map((c) => el("th", { scope: "col", class: "n" }, candidateLink(c))))), el("tbody", {}, rows.map((row) => el("tr", {}, el("th", { scope: "row" }, row[0]), row.slice(1).map((text) => el("td", { class: "n" }, text))))))),
      el("div", { class: "columns" }, pair.map((c, i) => el("section", {}, el("h3", {}, c.name), el("p", { class: "soft" }, c.change || ""), more[i].source ? el("pre", { tabindex: "0" }, highlighted(more[i].source)) : null))));
  },
};

// ---- parts of pages

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
const span = (d) => (d ? limits([d.estimate, d.low, d.high, d.seeds], true) : "");
function ablationOf(found) {
  const beyond = found.interactions.filter((one) => one.beyond_noise);
  return [el("p", {}, found.says + "."),
    found.mechanisms.length ? table(["mechanism", "contribution", "alone, over the baseline", "verdict"], found.mechanisms.map((one) => [one.name, span(one.contribution), span(one.alone), one.verdict])) : null,
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
const listed = (own) => (own.length ? own.flatMap((c, i) => (i ? [", ", candidateLink(c)] : [candidateLink(c)])) : "none");
function facts(values, without) {
  const kept = Object.entries(values).filter(([name, value]) => !(without || []).includes(name) && value !== null && value !== "" && value !== undefined && !(Array.isArray(value) && !value.length));
  return el("dl", {}, kept.flatMap(([name, value]) => [el("dt", {}, name.replace(/_/g, " ")), el("dd", {}, plain(value))]));
}
function plain(value) {
  if (Array.isArray(value)) return el("span", {}, value.map((one, i) => [i ? el("br") : null, plain(one)]).flat());
  if (value && typeof value === "object") return facts(value);
  return typeof value === "number" && !Number.isInteger(value) ? String(+value.toPrecision(5)) : String(value);
}
function scores(rows) {
  return el("table", {}, el("thead", {}, el("tr", {}, ["benchmark", "mean", "baseline", "by seed"].map((name, i) => el("th", { scope: "col", class: i ? "n" : "" }, name)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, el("th", { scope: "row" }, row.name), el("td", { class: "n" }, row.mean.toFixed(1)), el("td", { class: "n" }, row.baseline === null ? "" : row.baseline.toFixed(1)), el("td", { class: "n" }, Object.values(row.seeds).map((one) => one.toFixed(1)).join("  "))))));
}
function diffOf(text) {
  return el("pre", { tabindex: "0" }, text.split("\n").map((line) => el("span", { class: line.startsWith("@@") || line.startsWith("+++") || line.startsWith("---") ? "place" : line.startsWith("+") ? "added" : line.startsWith("-") ? "removed" : "same" }, line + "\n")));
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
  try {
    await views[name](shown(), new URLSearchParams(query || ""), rest.map(decodeURIComponent));
  } catch (error) {
    if (mine === turn) main.replaceChildren(el("p", { class: "bad" }, "This view cannot be shown: " + error.message));
    throw error;
  }
}
const about = document.getElementById("about");
about.textContent = `protocol ${run.protocol} · policy ${run.policy} · ${all.length} candidates · ${run.counted}${run.untuned ? " · " + run.untuned : ""}`;
document.getElementById("filter").addEventListener("submit", (event) => event.preventDefault());
let waiting = 0;
for (const one of [words, chosen, from]) one.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(show, 150); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
addEventListener("hashchange", () => { show(); main.focus({ preventScroll: true }); scrollTo(0, 0); });
show();
