// Who is kept: by the values of the pool's columns, of all arms side by side or of one in full.

const SHOWN_OF_ALL = 30;

function showKeptBy() {
  if (!data.kept_by.length) return;
  const place = section("groups", "Groups", "What each arm keeps of each value of the pool's columns. Ratio: the share of what is kept over the share of the valid rows; a size-matched random baseline has 1. Coloured where the 95 % Wilson interval of the kept rate, of the value alone, leaves out the baseline's. Of arms with several seeds, the first.");
  for (const column of data.kept_by) {
    const field = column.field === column.name ? "" : ` (${column.field})`;
    const holder = make("div");
    const views = column.arms.map((one, at) => [String(at), one.arms.join(", ")]);
    const show = (view) => holder.replaceChildren(...(view === "all" ? keptByAll(column) : keptByOne(column.arms[Number(view)], column.name)));
    place.append(make("h3", {}, `By ${column.name}${field}, ${many(column.rows, "valid row")}`));
    if (views.length > 1) place.append(make("div", { class: "bar-of-tools" }, choose("show", [["all", `all ${views.length} keep lists: ratios`], ...views], "all", show)));
    place.append(holder);
    show(views.length > 1 ? "all" : "0");
  }
}

const sure = (line) => (line.against_baseline ? `${line.against_baseline}-represented: the interval leaves out the rate of the random baseline` : "the random baseline may keep as much");

function keptByOne(arm, name) {
  const rows = arm.values.map((line) => ({
    words: line.value.toLowerCase(),
    cells: [line.value, line.pool, line.share_of_pool, line.kept, line.share_of_kept, line.kept_rate, line.ratio, line.against_baseline].map((sort) => ({ sort })),
    node: make("tr", {}, make("td", { class: "method", dir: "auto" }, line.value), make("td", {}, count(line.pool)), make("td", {}, percent(line.share_of_pool)),
      make("td", {}, count(line.kept)), make("td", {}, percent(line.share_of_kept)),
      make("td", {}, percent(line.kept_rate), make("small", {}, `${percent(line.low)} to ${percent(line.high)}`)),
      make("td", { title: sure(line) }, number(line.ratio, 2), ratioBar(line.ratio)),
      make("td", {}, line.against_baseline && make("span", { class: `tag of-${line.against_baseline}`, title: sure(line) }, line.against_baseline))),
  }));
  const { table } = sortable([{ label: name, rises: true }, { label: "pool", about: "valid rows" }, { label: "of the pool" }, { label: "kept", about: "rows" },
    { label: "of the kept", about: arm.draws === null ? "share of the rows kept" : "share of the draws" }, { label: "kept rate", about: "share of the valid rows with this value; below, the 95 % Wilson interval" },
    { label: "ratio", about: "share of what is kept over the share of the pool; half a bar is 1" },
    { label: "baseline", about: "whether more or less is kept than by the random baseline, where the interval leaves it out" }], rows, { class: "results" });
  const mean = arm.draws === null ? "" : `, ${arm.draws.toPrecision(3)} draws a row`;
  return [make("p", { class: "about" }, `Of all valid rows ${percent(arm.baseline_rate)} are kept (${count(arm.kept)}${mean}).`),
    make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `kept rates by ${name}` }, table), othersNote(arm.others)];
}

function keptByAll(column) {
  const values = new Map();
  for (const arm of column.arms)
    for (const line of arm.values) values.set(line.value, line);
  const found = column.arms.map((arm) => new Map(arm.values.map((line) => [line.value, line])));
  const surest = (line) => Math.max(...found.map((of) => (of.has(line.value) ? Math.abs(of.get(line.value).ratio - 1) * Math.sqrt(line.pool) : 0)));
  const rows = [...values.values()].sort((a, b) => surest(b) - surest(a)).slice(0, SHOWN_OF_ALL).map((line) => {
    const own = found.map((of) => of.get(line.value));
    return { words: line.value.toLowerCase(), cells: [{ sort: line.value }, { sort: line.pool }, { sort: line.share_of_pool }, ...own.map((one) => ({ sort: one ? one.ratio : null }))],
      node: make("tr", {}, make("td", { class: "method", dir: "auto" }, line.value), make("td", {}, count(line.pool)), make("td", {}, percent(line.share_of_pool)),
        own.map((one) => one ? make("td", { class: one.against_baseline ? `of-${one.against_baseline}` : null, title: `${percent(one.kept_rate)} kept (${percent(one.low)} to ${percent(one.high)}); ${sure(one)}` }, number(one.ratio, 2))
          : make("td", { title: "among the values of this keep list that are not shown" }, "–"))) };
  });
  const { table } = sortable([{ label: column.name, rises: true }, { label: "pool", about: "valid rows" }, { label: "of the pool" },
    ...column.arms.map((arm) => ({ label: arm.arms[0] + (arm.arms.length > 1 ? ` and ${arm.arms.length - 1} more` : ""), about: `${arm.arms.join(", ")}: ${percent(arm.baseline_rate)} of all valid rows kept` }))], rows, { class: "results wrap" });
  return [make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `ratios by ${column.name}` }, table), othersNote(Math.max(...column.arms.map((arm) => arm.others + arm.values.length)) - rows.length)];
}

const ratioBar = (ratio) => make("span", { class: "meter", "aria-hidden": "true" }, make("i", { style: { width: `${Math.min(100, 50 * ratio)}%` } }));
const othersNote = (others) => others ? make("p", { class: "about" }, `${many(others, "other value")} with less sure differences: kept_by.csv.`) : "";
