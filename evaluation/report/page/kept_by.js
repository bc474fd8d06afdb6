// Who is kept: by the values of the pool's columns, of all arms side by side or of one in full.

function showKeptBy() {
  if (!data.kept_by.length) return;
  const place = section("groups", "Groups", "What each arm keeps of each value of the pool's columns, against a uniform choice of equal size from the valid rows. Of arms with several seeds, the first.");
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

const sure = (line) => (line.against_uniform ? `${line.against_uniform}-represented: the interval leaves out the rate of a uniform choice` : "a uniform choice may keep as much");

function keptByOne(arm, name) {
  const rows = arm.values.map((line) => ({
    words: line.value.toLowerCase(),
    cells: [line.value, line.pool, line.share_of_pool, line.kept, line.share_of_kept, line.kept_rate, line.ratio].map((sort) => ({ sort })),
    node: make("tr", {}, make("td", { class: "method", dir: "auto" }, line.value), make("td", {}, count(line.pool)), make("td", {}, percent(line.share_of_pool)),
      make("td", {}, count(line.kept)), make("td", {}, percent(line.share_of_kept)),
      make("td", {}, percent(line.kept_rate), make("small", {}, `${percent(line.low)} to ${percent(line.high)}`)),
      make("td", { title: sure(line) }, ratioBar(line.ratio), number(line.ratio, 2), line.against_uniform && make("span", { class: `tag of-${line.against_uniform}` }, line.against_uniform))),
  }));
  const { table } = sortable([{ label: name, rises: true }, { label: "pool", about: "valid rows" }, { label: "of the pool" }, { label: "kept", about: "rows" },
    { label: "of the kept", about: arm.draws === null ? "share of the rows kept" : "share of the draws" }, { label: "kept rate", about: "share of the valid rows with this value; below, the 95 % Wilson interval" },
    { label: "ratio", about: "share of what is kept over the share of the pool" }], rows, { class: "results" });
  const mean = arm.draws === null ? "" : `, ${arm.draws.toPrecision(3)} draws a row`;
  return [make("p", { class: "about" }, `Of all valid rows ${percent(arm.uniform_rate)} are kept (${count(arm.kept)}${mean}); a uniform choice keeps as much of each value. Intervals are of each value alone; the surest differences stand first.`),
    make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `kept rates by ${name}` }, table), othersNote(arm.others)];
}

function keptByAll(column) {
  const values = new Map();
  for (const arm of column.arms)
    for (const line of arm.values) values.set(line.value, line);
  const found = column.arms.map((arm) => new Map(arm.values.map((line) => [line.value, line])));
  const rows = [...values.values()].map((line) => {
    const own = found.map((of) => of.get(line.value));
    return { words: line.value.toLowerCase(), cells: [{ sort: line.value }, { sort: line.pool }, { sort: line.share_of_pool }, ...own.map((one) => ({ sort: one ? one.ratio : null }))],
      node: make("tr", {}, make("td", { class: "method", dir: "auto" }, line.value), make("td", {}, count(line.pool)), make("td", {}, percent(line.share_of_pool)),
        own.map((one) => one ? make("td", { class: one.against_uniform ? `of-${one.against_uniform}` : null, title: `${percent(one.kept_rate)} kept (${percent(one.low)} to ${percent(one.high)}); ${sure(one)}` }, number(one.ratio, 2))
          : make("td", { title: "among the values of this keep list that are not shown" }, "–"))) };
  });
  const { table } = sortable([{ label: column.name, rises: true }, { label: "pool", about: "valid rows" }, { label: "of the pool" },
    ...column.arms.map((arm) => ({ label: arm.arms[0] + (arm.arms.length > 1 ? ` and ${arm.arms.length - 1} more` : ""), about: `${arm.arms.join(", ")}: ${percent(arm.uniform_rate)} of all valid rows kept` }))], rows, { class: "results wrap" });
  return [make("p", { class: "about" }, "Ratio of the share of what is kept to the share of the pool: 1 is what a uniform choice gives. Coloured where the 95 % Wilson interval of the kept rate, of the value alone, leaves out the rate of all."),
    make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `ratios by ${column.name}` }, table), othersNote(Math.max(...column.arms.map((arm) => arm.others)))];
}

const ratioBar = (ratio) => make("span", { class: "meter", "aria-hidden": "true" }, make("i", { style: { width: `${Math.min(100, 50 * ratio)}%` } }));
const othersNote = (others) => others ? make("p", { class: "about" }, `${many(others, "other value")} with less sure differences: kept_by.csv.`) : "";
