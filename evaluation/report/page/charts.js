// Curves of accuracy against what was kept and against compute; the overlap of keep lists.

function showCurves() {
  const place = section("curves", "Curves", "A line joins the points of one method; the band runs from its lowest to its highest seed.");
  const some = data.groups.map((group, at) => ({ group, arms: data.arms.filter((arm) => arm.group === at && arm.seeds.length) })).filter((one) => one.arms.length);
  if (!some.length) {
    place.append(notes(["No arm has a result yet."]));
    return;
  }
  for (const { group, arms } of some) {
    if (some.length > 1) place.append(make("h3", {}, group.name));
    place.append(curves(group, arms));
  }
  const costs = breakEven();
  if (costs) place.append(make("h3", {}, "When has curation paid?"), costs);
}

function curves(group, arms) {
  const total = (arm) => { const f = data.funnels.find((one) => one.arms.includes(arm.name)); return f ? f.rows : null; };
  const spent = (arm) => (data.cost.arms[arm.name] || {}).own_curation_seconds || 0;
  const measures = {
    samples_seen: ["samples seen", (arm) => arm.samples_seen],
    flops: ["training FLOP", (arm) => arm.flops],
    seconds: ["seconds of training, one run", (arm) => arm.train_seconds],
    all: ["seconds of training and of the arm's own curation", (arm) => arm.train_seconds && arm.train_seconds + spent(arm)],
  };
  const last = group.columns.filter((column) => column.is_shown).at(-1) || group.columns[0];
  let column = last.key, compute = ["flops", "samples_seen"].find((key) => new Set(arms.map(measures[key][1])).size > 1) || "all";
  const methods = [...new Set(arms.map((arm) => arm.method))];
  const off = new Set();
  const left = make("div", { class: "card" }), right = make("div", { class: "card" });
  function redraw() {
    const chosen = group.columns.find((one) => one.key === column);
    const kept = (arm) => (total(arm) ? 100 * arm.kept / total(arm) : null);
    const shown = arms.filter((arm) => !off.has(arm.method) && (group.cells[arm.name] || {})[column]);
    const cellOf = (arm) => group.cells[arm.name][column];
    left.replaceChildren(chart(shown, methods, kept, cellOf, "percent of the pool kept", `${chosen.label}, percent`, false));
    right.replaceChildren(chart(shown, methods, measures[compute][1], cellOf, measures[compute][0], `${chosen.label}, percent`, true));
  }
  redraw();
  return make("div", {},
    make("div", { class: "bar-of-tools" },
      choose("of", group.columns.map((one) => [one.key, one.label]), column, (value) => { column = value; redraw(); }),
      choose("against", Object.entries(measures).map(([key, [text]]) => [key, text]), compute, (value) => { compute = value; redraw(); })),
    make("div", { class: "two" }, left, right),
    make("div", { class: "legend", role: "group", "aria-label": "methods shown" }, methods.map((method, at) => {
      const button = make("button", { type: "button", "aria-pressed": "true", onclick: () => {
        off.has(method) ? off.delete(method) : off.add(method);
        button.setAttribute("aria-pressed", !off.has(method));
        redraw();
      } }, make("i", { style: { background: PALETTE[at % PALETTE.length] } }), method);
      return button;
    })));
}

function chart(arms, methods, xOf, cellOf, xLabel, yLabel, logarithmic) {
  const points = arms.map((arm) => ({ arm, x: xOf(arm), cell: cellOf(arm) })).filter((one) => one.x > 0);
  const box = { left: 48, right: 540, top: 14, bottom: 270 };
  const svg = draw("svg", { viewBox: "0 0 560 312", role: "img", "aria-label": `${yLabel} against ${xLabel}` });
  if (!points.length) {
    svg.append(draw("text", { x: 280, y: 150, "text-anchor": "middle" }, "not known of these arms"));
    return svg;
  }
  const xs = points.map((one) => one.x), ys = points.flatMap((one) => [...one.cell.seeds, ...one.cell.interval]).map((v) => 100 * v);
  let low = Math.min(...xs), high = Math.max(...xs);
  const wide = logarithmic && high / low > 4;
  if (low === high) { low *= 0.8; high *= 1.2; } else if (!wide) { const pad = (high - low) * 0.06; low -= pad; high += pad; } else { low /= 1.15; high *= 1.15; }
  if (!logarithmic) { low = Math.max(0, low); high = Math.min(Math.max(104, ...xs), high); }
  const pad = (Math.max(...ys) - Math.min(...ys)) * 0.08 || 1;
  const bottom = Math.max(0, Math.min(...ys) - pad), top = Math.max(...ys) + pad;
  const x = scale(low, high, box.left, box.right, wide), y = scale(bottom, top, box.bottom, box.top);
  axes(svg, box, x, y, wide ? logTicks(low, high) : ticks(low, high, 5), ticks(bottom, top, 5), xLabel, yLabel, short, (v) => +v.toFixed(2));
  methods.forEach((method, at) => {
    const line = points.filter((one) => one.arm.method === method).sort((a, b) => a.x - b.x);
    if (!line.length) return;
    const ink = PALETTE[at % PALETTE.length];
    const ends = (one) => [Math.min(...one.cell.seeds), Math.max(...one.cell.seeds)].map((v) => y(100 * v));
    if (line.length > 1) {
      const upper = line.map((one) => `${x(one.x)},${ends(one)[1]}`), lower = line.map((one) => `${x(one.x)},${ends(one)[0]}`).reverse();
      svg.append(draw("polygon", { points: [...upper, ...lower].join(" "), fill: ink, opacity: 0.13 }),
        draw("polyline", { points: line.map((one) => `${x(one.x)},${y(100 * one.cell.value)}`).join(" "), fill: "none", stroke: ink, "stroke-width": 1.8,
          "stroke-dasharray": DASHES[Math.floor(at / PALETTE.length) % DASHES.length] }));
    }
    for (const one of line) {
      const [from, to] = ends(one);
      svg.append(draw("line", { x1: x(one.x), x2: x(one.x), y1: from, y2: to, stroke: ink, "stroke-width": line.length > 1 ? 0.8 : 5, opacity: 0.35, "stroke-linecap": "round" }),
        draw("circle", { cx: x(one.x), cy: y(100 * one.cell.value), r: 4, fill: ink, stroke: "var(--card)" },
          draw("title", {}, `${one.arm.name}: ${one.cell.text}; ${xLabel} ${short(one.x)}`)));
    }
  });
  return svg;
}

function breakEven() {
  const names = Object.keys(data.cost.arms);
  if (!names.length) return null;
  const rows = names.map((name) => {
    const one = data.cost.arms[name];
    const cells = [{ sort: name }, { sort: one.own_curation_seconds }, { sort: one.seconds_saved_per_run }, { sort: one.pays_after_runs ?? Infinity }, { sort: one.seconds_shared_out }];
    return { cells, words: name.toLowerCase(), node: make("tr", {}, make("td", { class: "method" }, name), make("td", {}, duration(one.own_curation_seconds)),
      make("td", {}, duration(one.seconds_saved_per_run)), make("td", {}, one.pays_after), make("td", {}, duration(one.seconds_shared_out))) };
  });
  const { table } = sortable([{ label: "arm", rises: true }, { label: "own curation", about: "seconds of what the baseline does not rest on" },
    { label: "saved by a run", about: "training seconds that one run saves by seeing fewer samples" },
    { label: "pays after", about: "own curation over what one run saves; results taken as equal" },
    { label: "shared out", about: "the arm's part of the cost of all" }], rows);
  return make("div", {}, make("p", { class: "about" }, `Baseline: ${data.cost.baseline || "none"}. A run saves the samples that it sees fewer; where all arms see as many, curation buys accuracy and not time.`),
    make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "cost of curation" }, table));
}

function showOverlap() {
  const place = section("overlap", "Overlap", "Rows in both keep lists over rows in either (Jaccard), percent. Of arms with several seeds, the first.");
  if (!data.overlaps.length) {
    place.append(notes(["Fewer than two keep lists of one pool: nothing to compare."]));
    return;
  }
  for (const one of data.overlaps) {
    if (data.overlaps.length > 1) place.append(make("h3", {}, `pool ${one.pool}, ${count(one.rows)} rows`));
    const initials = one.names.map((_, at) => String(at + 1));
    place.append(make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "overlap of keep lists" }, make("table", { class: "matrix" },
      make("thead", {}, make("tr", {}, make("td"), initials.map((text, at) => make("th", { scope: "col", title: one.names[at] }, text)))),
      make("tbody", {}, one.jaccard.map((row, i) => make("tr", {}, make("th", { scope: "row", title: `${one.names[i]}: ${count(one.kept[i])} kept` }, make("i", {}, initials[i]), one.names[i]),
        row.map((share, j) => make("td", { title: `${one.names[i]} and ${one.names[j]}: ${percent(share)}`, style: {
          background: `color-mix(in srgb, var(--accent) ${Math.round(85 * share)}%, var(--card))`, color: share > 0.55 ? "var(--card)" : "var(--ink)" } }, (100 * share).toFixed(0)))))))));
  }
}
