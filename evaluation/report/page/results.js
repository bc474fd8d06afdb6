// The head of the page, the funnel and the table of results.

function showHead() {
  const finished = data.arms.filter((arm) => arm.state === "finished").length;
  const runs = data.arms.reduce((sum, arm) => sum + arm.seeds.length, 0);
  document.title = `${data.title} · report`;
  document.getElementById("title").textContent = data.title;
  const facts = [
    ["arms", count(data.arms.length) + (finished < data.arms.length ? ` (${finished} finished)` : "")],
    ["evaluated runs", count(runs)],
    ["pool", data.funnels.length ? `${short(Math.max(...data.funnels.map((f) => f.rows)))} rows` : "–"],
    ["made", data.made.slice(0, 16).replace("T", " ")],
  ];
  document.getElementById("main").append(
    make("h1", {}, data.title),
    make("p", { class: "lead" }, "What was curated, trained and measured; what went, and why."),
    notes(data.notes), notes(data.problems, true),
    make("dl", { class: "facts" }, facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))));
  document.getElementById("footer").textContent =
    `dbp ${data.version}${data.commit ? `, commit ${data.commit}` : ""} · store ${data.store} · ${data.command}`;
}

function showFunnel() {
  const place = section("funnel", "Funnel", "Rows of the pool at each stage, by arm. Open a row for the reasons.");
  if (!data.funnels.length) {
    place.append(notes(["No keep list of these arms is in the store."]));
    return;
  }
  const kinds = { pool: "as invalid", dedup: "at dedup", filter: "at filter", select: "at selection" };
  place.append(make("div", { class: "key" }, make("span", {}, make("i", { class: "of-kept" }), "kept"),
    Object.entries(kinds).map(([kind, word]) => make("span", {}, make("i", { class: `of-${kind}` }), `went ${word}`))));
  const most = Math.max(...data.funnels.map((one) => one.rows));
  const list = make("div", { class: "card funnel" });
  for (const one of data.funnels) {
    const parts = [["kept", one.kept], ...one.steps.slice().reverse().map((step) => [step.stage, step.before - step.after])];
    const words = parts.filter(([, rows]) => rows).map(([kind, rows]) => `${kinds[kind] || kind} ${count(rows)}`).join(", ");
    const names = one.arms.length > 3 ? [...one.arms.slice(0, 2), `and ${one.arms.length - 2} more`] : one.arms;
    list.append(make("details", {},
      make("summary", {},
        make("span", { class: "who", title: one.arms.join("\n") }, names.map((name, at) => at ? make("small", {}, name) : name)),
        make("span", { class: "stack", role: "img", "aria-label": `of ${count(one.rows)} rows: ${words}`, style: { width: `${100 * one.rows / most}%` } },
          parts.filter(([, rows]) => rows).map(([kind, rows]) =>
            make("span", { class: `of-${kind in kinds || kind === "kept" ? kind : "select"}`, title: `${kinds[kind] || kind}: ${count(rows)}`, style: { width: `${100 * rows / one.rows}%` } }))),
        make("span", { class: "count" }, count(one.kept), make("small", {}, ` of ${count(one.rows)}, ${percent(one.kept / one.rows)}`))),
      make("table", { class: "words" },
        make("thead", {}, make("tr", {}, ["stage", "reason", "rows", "share of the pool"].map((text) => make("th", { scope: "col" }, text)))),
        make("tbody", {}, one.steps.flatMap((step) => [
          make("tr", {}, make("th", { scope: "row" }, step.stage), make("td", {}, "rows that came"), make("td", {}, count(step.before)), make("td", {}, percent(step.before / one.rows))),
          ...step.reasons.map(([reason, rows]) => make("tr", {}, make("td", {}, ""), make("td", {}, reason), make("td", {}, `−${count(rows)}`), make("td", {}, percent(rows / one.rows)))),
        ]), make("tr", {}, make("th", { scope: "row" }, "kept"), make("td", {}, one.arms.join(", ")), make("td", {}, count(one.kept)), make("td", {}, percent(one.kept / one.rows)))))));
  }
  place.append(list);
}

function showResults() {
  const place = section("results", "Results", null);
  data.groups.forEach((group, at) => {
    if (data.groups.length > 1) place.append(make("h3", {}, group.name));
    if (group.reason) place.append(notes([`Apart from the first table, because what was measured is not the same: ${group.reason}.`], true));
    place.append(notes(group.notes));
    place.append(resultsTable(group, data.arms.filter((arm) => arm.group === at)));
  });
}

function resultsTable(group, arms) {
  const holder = make("div");
  const hidden = group.columns.filter((column) => !column.is_shown).length;
  const status = make("span", { role: "status", "aria-live": "polite" });
  let every = false, words = "", shown = null;
  function rebuild() {
    const columns = group.columns.filter((column) => every || column.is_shown);
    shown = sortable([
      { label: "method", rises: true }, { label: "seeds" }, { label: "kept", about: "rows that training drew from" },
      { label: "samples seen" }, { label: "FLOP", about: "of training, forward and backward" },
      ...columns.map((column) => ({ label: column.heading || column.label, about: column.about })),
    ], arms.map((arm) => resultsRow(arm, group, columns)), { class: "results" });
    holder.replaceChildren(make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `results, ${group.name}` }, shown.table));
    say(shown.filter(words));
  }
  const say = (rows) => { status.textContent = words ? `${rows} of ${arms.length} arms` : many(arms.length, "arm"); };
  const search = make("input", { type: "search", placeholder: "filter arms", "aria-label": "filter arms", oninput: () => {
    words = search.value;
    say(shown.filter(words));
  } });
  const more = make("button", { class: "choice", type: "button", "aria-pressed": "false", onclick: () => {
    every = !every;
    more.setAttribute("aria-pressed", every);
    rebuild();
  } }, `all ${group.columns.length} columns`);
  rebuild();
  return make("div", {}, make("div", { class: "bar-of-tools" }, search, hidden > 0 && more, status), holder);
}

function resultsRow(arm, group, columns) {
  const tag = arm.state === "finished" ? null : make("span", { class: "tag warn", title: arm.problems.join("\n") }, arm.state);
  const isControl = data.arms.some((other) => other.control === arm.name);
  const first = make("td", { class: "method", title: arm.control ? `control: ${arm.control}` : null }, arm.name,
    isControl && make("span", { class: "tag" }, "control"), tag,
    arm.control && arm.control !== arm.name && make("small", {}, `against ${arm.control}`));
  const own = group.cells[arm.name] || {};
  const cells = [
    { sort: arm.name }, { sort: arm.seeds.length, text: arm.seeds.length }, { sort: arm.kept, text: arm.kept_text || count(arm.kept) },
    { sort: arm.samples_seen, text: count(arm.samples_seen) },
    { sort: arm.flops, text: arm.flops === null ? "–" : arm.flops.toExponential(1) },
  ];
  let nodes = cells.slice(1).map((cell) => make("td", {}, cell.text));
  if (!arm.seeds.length) {
    nodes = [make("td", { class: "why", colspan: 4 + columns.length }, arm.problems[0] || "unfinished")];
  } else {
    for (const column of columns) {
      const cell = own[column.key];
      cells.push({ sort: cell ? cell.value : null });
      const about = cell && [`seeds: ${cell.seeds.map((value) => (100 * value).toFixed(2)).join(", ")}`,
        cell.adjusted_p === null ? null : `p = ${cell.p.toPrecision(2)}, adjusted ${cell.adjusted_p.toPrecision(2)}`].filter(Boolean).join("\n");
      nodes.push(make("td", { class: cell && cell.is_separate ? "strong" : null, title: about || null },
        cell ? cell.text : "–", cell && cell.difference_text && make("small", {}, cell.difference_text)));
    }
  }
  return { cells, node: make("tr", {}, first, nodes), words: `${arm.name} ${arm.state}`.toLowerCase() };
}
