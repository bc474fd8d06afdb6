// Methods, pairs, and where everything came from.

function showMethods() {
  const place = section("methods", "Methods", "What the arms chose by: each method once, with the settings that decide its result. Seconds are of its own step, inputs not counted.");
  if (!data.methods.length) return place.append(notes(["These arms rest on no method: nothing was chosen."]));
  place.append(make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "methods" }, make("table", { class: "words" },
    make("thead", {}, make("tr", {}, ["stage", "method", "what it does", "settings", "seconds", "arms"].map((text) => make("th", { scope: "col" }, text)))),
    make("tbody", {}, data.methods.map((one) => make("tr", {}, make("td", {}, one.stage), make("td", { class: "method" }, one.word),
      make("td", {}, one.about, one.source ? make("div", { class: "soft" }, one.source) : null), make("td", {}, make("code", {}, one.settings || "–")),
      make("td", {}, duration(one.seconds)), make("td", {}, one.arms.join(", "))))))));
}

function showPairs() {
  const place = section("pairs", "Pairs", "What dedup called duplicates around its threshold, the ends of the scores, entries, and rewritten captions.");
  const { duplicates, scores, entries, captions } = data.pairs;
  if (![duplicates, scores, entries, captions].some((some) => some.length))
    place.append(notes(["These arms rest on no near-duplicate search, no scores, no entries and no rewritten captions."]));
  for (const one of duplicates) place.append(...duplicatePairs(one));
  for (const one of scores)
    place.append(make("h3", {}, `${one.label} (${one.key.slice(0, 8)}, ${many(one.rows, "row")})`),
      make("div", { class: "card" }, [["Lowest", one.lowest], ["Highest", one.highest]].map(([word, samples]) => [
        make("div", { class: "side" }, word), make("ul", { class: "pictures" }, samples.map((sample) => pictureCard(sample, `score ${number(sample.score, 4)}`)))])));
  for (const one of entries)
    place.append(make("h3", {}, `Entries (${one.key.slice(0, 8)}): ${count(one.matched)} of ${count(one.entries)} match a caption`),
      make("div", { class: "two" }, [["Head: the most frequent", one.head], ["Tail: the least frequent", one.tail]].map(([word, rows]) => make("div", {}, make("div", { class: "side" }, word), entryTable(one.columns, rows)))));
  for (const one of captions)
    place.append(make("h3", {}, `Captions before and after (${one.key.slice(0, 8)}, ${many(one.rows, "row")} rewritten)`),
      make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "captions before and after" }, make("table", { class: "words" }, make("thead", {}, make("tr", {}, ["picture", "original", "refined"].map((text) => make("th", { scope: "col" }, text)))),
        make("tbody", {}, one.captions.map((sample) => make("tr", {}, make("td", {}, thumb(sample)), make("td", {}, caption(sample.caption)), make("td", {}, caption(sample.refined))))))));
}

function duplicatePairs(one) {
  const items = [];
  let wasRemoved = null;
  for (const pair of one.pairs) {
    if (wasRemoved === true && !pair.removed && one.threshold !== null)
      items.push(make("li", { class: "threshold" }, `threshold ${number(one.threshold, 4)}: what is below stayed`));
    wasRemoved = pair.removed;
    items.push(make("li", { class: "pair" },
      make("div", { class: "head" }, make("span", {}, `similarity ${number(pair.similarity, 5)}`), make("span", { class: pair.removed ? "tag warn" : "tag" }, pair.removed ? "went" : "stayed")),
      make("div", { class: "both" }, [[pair.row, pair.removed ? "this row" : "this row"], [pair.twin, "earlier twin"]].map(([sample, word]) =>
        make("div", { class: "picture" }, thumb(sample), make("div", { class: "soft" }, word), caption(sample.caption))))));
  }
  return [make("h3", {}, `Duplicates (${one.key.slice(0, 8)}): ${many(one.removed, "row")} of ${count(one.rows)} went`),
    make("p", { class: "about" }, "The pairs nearest to the threshold on both sides, the most similar first."), make("ul", { class: "pairs" }, items)];
}

function entryTable(columns, rows) {
  const shown = (value) => typeof value === "number" ? (Number.isInteger(value) ? count(value) : number(value, 4)) : value === null ? "–" : String(value);
  return make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "entries" }, make("table", {}, make("thead", {}, make("tr", {}, columns.map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, rows.map((row) => make("tr", {}, row.map((value) => make("td", { dir: typeof value === "string" ? "auto" : null }, shown(value))))))));
}

function showProvenance() {
  const place = section("provenance", "Provenance", "Every artifact that these arms rest on, with what made it; and what all of it cost, each artifact once.");
  const { artifacts, versions, commands } = data.provenance;
  place.append(make("h3", {}, "Cost"), make("pre", {}, data.cost.lines.length ? data.cost.lines.join("\n") : "Nothing was made."));
  place.append(make("h3", {}, "Runs"), make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "keys of the runs" }, make("table", { class: "words" },
    make("thead", {}, make("tr", {}, ["arm", "seed", "keep list", "checkpoint", "evaluation"].map((text) => make("th", { scope: "col" }, text)))),
    make("tbody", {}, data.arms.flatMap((arm) => arm.seeds.length
      ? arm.seeds.map((seed, at) => make("tr", {}, make("td", { class: "method" }, at ? "" : arm.name), make("td", {}, seed), ["keep", "train", "evaluate"].map((name) => make("td", {}, make("code", {}, arm.keys[at][name] || "–")))))
      : [make("tr", {}, make("td", { class: "method" }, arm.name), make("td", {}, "–"), make("td", {}, make("code", {}, arm.keep || "–")), make("td", { colspan: 2 }, arm.problems[0] || "unfinished"))])))));
  const list = make("div", { class: "card long", tabindex: 0, role: "region", "aria-label": "artifacts" });
  const found = make("span", { role: "status" });
  const search = make("input", { type: "search", placeholder: "filter by stage, key or setting", "aria-label": "filter artifacts", oninput: () => show() });
  const nodes = artifacts.map((one) => ({ words: `${one.stage} ${one.key} ${JSON.stringify(one.parameters)}`.toLowerCase(), node: artifact(one, versions, commands) }));
  const show = () => {
    const wanted = nodes.filter((one) => one.words.includes(search.value.trim().toLowerCase()));
    list.replaceChildren(...wanted.map((one) => one.node));
    found.textContent = `${wanted.length} of ${artifacts.length}`;
  };
  show();
  place.append(make("h3", {}, "Artifacts"), make("div", { class: "bar-of-tools" }, search, found), list);
}

function artifact(one, versions, commands) {
  const inside = make("div");
  const about = make("details", { class: "artifact", ontoggle: () => {
    if (!about.open || inside.firstChild) return;
    inside.append(make("pre", {}, commands[one.command] || "no command was recorded"),
      make("pre", {}, JSON.stringify({ key: one.key, inputs: one.inputs, parameters: one.parameters, counts: one.counts, machine: one.machine, gpu: one.gpu, commit: one.commit, bytes: one.bytes, versions: versions[one.versions] }, null, 1)));
  } }, make("summary", {}, make("strong", {}, one.stage), make("code", {}, one.key.slice(0, 20)), make("span", { class: "soft" }, one.created.slice(0, 16).replace("T", " ")),
    make("span", {}, duration(one.seconds)), make("span", { class: "soft" }, Object.entries(one.counts).filter(([, value]) => typeof value === "number").slice(0, 5).map(([name, value]) => `${name} ${short(value)}`).join(", "))), inside);
  return about;
}
