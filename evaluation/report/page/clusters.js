// Clusters: where they lie, what every method and temperature keeps of them, and whom that leaves.

function showClusters() {
  const place = section("clusters", "Clusters",
    "Each disc is a cluster: how spread its members are, how far its neighbours lie, its area the number of members. " +
    "Choose one by a click, with the arrow keys, or by its number.");
  if (!data.clusterings.length) {
    place.append(notes(["No arm chose by clusters, or their clusterings are no longer in the store."]));
    return;
  }
  const holder = make("div");
  const show = (key) => holder.replaceChildren(clusterView(data.clusterings.find((one) => one.key === key)));
  if (data.clusterings.length > 1)
    place.append(make("div", { class: "bar-of-tools" }, choose("clustering", data.clusterings.map((one) =>
      [one.key, `${one.key.slice(0, 8)}: ${one.num_clusters} clusters, used by ${one.used_by[0]}${one.used_by.length > 1 ? ` and ${one.used_by.length - 1} more` : ""}`]),
    data.clusterings[0].key, show)));
  place.append(holder);
  show(data.clusterings[0].key);
}

function clusterView(one) {
  const order = [...one.size.keys()].filter((at) => one.size[at] > 0 && one.d_intra[at] !== null)
    .sort((a, b) => (one.complexity[a] ?? -1) - (one.complexity[b] ?? -1));
  const byCluster = new Map();
  one.samples.forEach((sample, at) => byCluster.set(sample.cluster, [...(byCluster.get(sample.cluster) || []), at]));
  const t = one.temperatures;
  const isTold = (arm) => one.used_by.includes(arm.name) && arm.name in one.own_temperature;
  const first = one.arms.find(isTold) || one.arms.find((arm) => one.used_by.includes(arm.name)) || one.arms[0] || { name: "", kept: [] };
  const state = {
    cluster: 0,
    arm: first.name,
    tint: "complexity", temperature: 0, budget: 0,
  };
  // At first the most complex cluster of which there is something to see on both sides.
  const isSplit = (at) => byCluster.has(at) && first.kept[at] > 0 && first.kept[at] < one.size[at];
  state.cluster = order.filter(isSplit).at(-1) ?? order.filter((at) => byCluster.has(at)).at(-1) ?? order.at(-1) ?? 0;
  if (t) {
    const own = one.own_temperature[state.arm];
    state.temperature = Math.max(0, t.values.indexOf(own));
    const arm = data.arms.find((other) => other.name === state.arm);
    state.budget = Math.max(0, t.budgets.indexOf(arm ? arm.kept : t.budgets[0]));
  }
  const keptOf = () => (one.arms.find((arm) => arm.name === state.arm) || { kept: one.size.map(() => 0) }).kept;
  const quotas = () => (t ? t.quotas[state.budget][state.temperature] : null);
  const plot = scatter(one, order, (at) => { state.cluster = at; showDetail(); });
  const detail = make("div", { class: "card detail", "aria-live": "polite" });
  const gallery = make("div", { class: "card", style: { marginTop: "1.2rem" } });
  const bars = make("div", { class: "card sizes-chart" });
  const told = make("span", { role: "status" });

  function tint() {
    const values = state.tint === "complexity" ? one.complexity
      : state.tint === "quota" && quotas() ? quotas().map((quota, at) => quota / one.size[at])
      : keptOf().map((kept, at) => kept / one.size[at]);
    plot.tint(values, state.tint === "complexity" ? null : [0, 1]);
  }
  function showDetail() {
    plot.choose(state.cluster);
    picker.value = state.cluster;
    detail.replaceChildren(clusterDetail(one, state));
    gallery.replaceChildren(clusterPictures(one, state, byCluster.get(state.cluster) || [], keptOf()));
  }
  function showTemperature() {
    if (t) {
      const q = quotas();
      const whole = order.filter((at) => q[at] === one.size[at]).length;
      told.textContent = `temperature ${t.values[state.temperature]}: like ${t.effective[state.temperature].toLocaleString("en-US")} clusters of equal share; ` +
        `${many(whole, "cluster")} kept whole; quotas from ${count(Math.min(...order.map((at) => q[at])))} to ${count(Math.max(...order.map((at) => q[at])))}` +
        (t.own.includes(t.values[state.temperature]) ? "" : "; not a value of these arms");
    }
    bars.replaceChildren(sizeBars(one, order, keptOf(), quotas(), state));
    tint();
    detail.replaceChildren(clusterDetail(one, state));
  }
  const picker = make("input", { type: "number", min: 0, max: one.num_clusters - 1, value: state.cluster, "aria-label": "cluster number", onchange: () => {
    const wanted = Number(picker.value);
    if (order.includes(wanted)) { state.cluster = wanted; showDetail(); }
  } });
  const slider = t && make("input", { type: "range", min: 0, max: t.values.length - 1, step: 1, value: state.temperature, id: "temperature", "aria-label": "temperature",
    "aria-valuetext": String(t.values[state.temperature]), oninput: () => {
      state.temperature = Number(slider.value);
      slider.setAttribute("aria-valuetext", String(t.values[state.temperature]));
      if (state.tint === "complexity") { state.tint = "quota"; tintField.querySelector("select").value = "quota"; }
      showTemperature();
    } });
  const tints = [["complexity", "complexity"], ["kept", "share kept by the arm"], ...(t ? [["quota", "share kept at the temperature"]] : [])];
  const tintField = choose("colour", tints, state.tint, (value) => { state.tint = value; tint(); });
  const view = make("div", {},
    make("div", { class: "bar-of-tools" },
      choose("arm", one.arms.map((arm) => [arm.name, arm.name]), state.arm, (value) => { state.arm = value; showTemperature(); showDetail(); }),
      tintField, make("label", {}, "cluster", picker)),
    t && make("div", { class: "bar-of-tools" }, make("label", { for: "temperature" }, "temperature"), slider,
      t.budgets.length > 1 && choose("budget", t.budgets.map((budget, at) => [at, `${count(budget)} rows`]), state.budget, (value) => { state.budget = Number(value); showTemperature(); }), told),
    make("div", { class: "places" }, make("div", { class: "card" }, plot.svg), detail),
    gallery, bars);
  if (one.num_shown && one.num_shown < order.length)
    view.append(notes([`Pictures of ${count(one.num_shown)} of ${count(order.length)} clusters, evenly over their complexities, so that the page stays small; quotas are of all.`]));
  showTemperature();
  showDetail();
  return view;
}

function scatter(one, order, chosen) {
  const box = { left: 56, right: 545, top: 14, bottom: 330 };
  const xs = order.map((at) => one.d_intra[at]), ys = order.map((at) => one.d_inter[at] ?? 0);
  const ends = (values) => { const low = Math.min(...values), high = Math.max(...values), pad = (high - low) * 0.06 || 0.01; return [low - pad, high + pad]; };
  const [[x0, x1], [y0, y1]] = [ends(xs), ends(ys)];
  const x = scale(x0, x1, box.left, box.right), y = scale(y0, y1, box.bottom, box.top);
  const svg = draw("svg", { viewBox: "0 0 560 395", class: "scatter", tabindex: 0, role: "application",
    "aria-label": `${order.length} clusters by d_intra and d_inter; arrow keys go from the least to the most complex` });
  axes(svg, box, x, y, ticks(x0, x1, 6), ticks(y0, y1, 6), "d_intra: mean distance of members to their centroid", "d_inter: mean distance to the nearest centroids", (v) => +v.toFixed(4), (v) => +v.toFixed(4));
  const most = Math.max(...order.map((at) => one.size[at]));
  const radius = order.length > 1000 ? 7 : order.length > 200 ? 11 : 17;
  const discs = new Map();
  const layer = draw("g");
  for (const at of [...order].sort((a, b) => one.size[b] - one.size[a])) {
    const disc = draw("circle", { cx: x(one.d_intra[at]).toFixed(1), cy: y(one.d_inter[at] ?? 0).toFixed(1), r: (2 + radius * Math.sqrt(one.size[at] / most)).toFixed(1), "data-cluster": at, opacity: 0.88 });
    disc.append(draw("title", {}, `cluster ${at}: ${count(one.size[at])} members, complexity ${number(one.complexity[at], 4)}`));
    discs.set(at, disc);
    layer.append(disc);
  }
  const key = draw("g"), mark = draw("circle", { class: "chosen", fill: "none", "pointer-events": "none" });
  svg.append(layer, mark, key);
  let now = order[0];
  svg.addEventListener("click", (event) => {
    const hit = event.target.closest("[data-cluster]");
    if (hit) return chosen(Number(hit.getAttribute("data-cluster")));
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const far = (c) => (x(one.d_intra[c]) - at.x) ** 2 + (y(one.d_inter[c] ?? 0) - at.y) ** 2;
    chosen(order.reduce((best, c) => (far(c) < far(best) ? c : best), order[0]));
  });
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    chosen(order[Math.max(0, Math.min(order.length - 1, order.indexOf(now) + step))]);
  });
  return {
    svg,
    choose(at) {
      now = at;
      const disc = discs.get(at);
      for (const name of ["cx", "cy"]) mark.setAttribute(name, disc.getAttribute(name));
      mark.setAttribute("r", Number(disc.getAttribute("r")) + 2.5);
    },
    tint(values, range) {
      const known = order.map((at) => values[at]).filter((value) => value !== null && Number.isFinite(value));
      const [low, high] = range || [Math.min(...known), Math.max(...known)];
      for (const at of order)
        discs.get(at).setAttribute("fill", values[at] === null ? "var(--select)" : colour((values[at] - low) / (high - low || 1)));
      const text = (value) => range ? percent(value, 0) : number(value, 3);
      key.replaceChildren(...VIRIDIS.map((ink, step) => draw("rect", { x: 385 + 6 * step, y: 381, width: 6.2, height: 8, fill: ink })),
        draw("text", { x: 380, y: 389, "text-anchor": "end" }, text(low)), draw("text", { x: 487, y: 389 }, text(high)));
    },
  };
}

function clusterDetail(one, state) {
  const at = state.cluster, size = one.size[at], t = one.temperatures;
  const meter = (rows) => make("span", { class: "meter", "aria-hidden": "true" }, make("i", { style: { width: `${Math.min(100, 100 * rows / size)}%` } }));
  const line = (name, rows, strong) => make("tr", {}, make("th", { scope: "row" }, strong ? make("strong", {}, name) : name),
    make("td", { class: "number" }, count(rows), meter(rows)), make("td", { class: "number" }, percent(rows / size)));
  return make("div", {},
    make("h3", {}, `Cluster ${at}`),
    make("p", { class: "about" }, `${many(size, "member")}; d_intra ${number(one.d_intra[at], 4)}, d_inter ${number(one.d_inter[at], 4)}, complexity ${number(one.complexity[at], 5)}`),
    make("div", { class: "scroll quotas", tabindex: 0, role: "region", "aria-label": "rows kept of this cluster" }, make("table", { class: "words" },
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "kept by"), make("th", { scope: "col" }, "rows"), make("th", { scope: "col" }, "share"))),
      make("tbody", {}, one.arms.map((arm) => line(arm.name, arm.kept[at], arm.name === state.arm)),
        t && t.values.map((value, i) => line(`quota at temperature ${value}${t.budgets.length > 1 ? `, ${count(t.budgets[state.budget])} kept` : ""}`, t.quotas[state.budget][i][at], i === state.temperature))))));
}

function clusterPictures(one, state, samples, kept) {
  const arm = one.arms.find((other) => other.name === state.arm);
  const title = make("h3", { style: { marginTop: 0 } }, `Members of cluster ${state.cluster} under ${state.arm}`);
  if (!samples.length || !arm) return make("div", {}, title, notes(["No members of this cluster are on the page: it carries a bounded number of pictures."]));
  const sides = [[], []];
  for (const at of samples) {
    const [isKept, stage, reason] = arm.reasons[arm.fates[at]];
    sides[isKept ? 0 : 1].push(pictureCard(one.samples[at], `distance ${number(one.samples[at].distance)}`, `${stage}: ${reason}`));
  }
  const size = one.size[state.cluster], stays = kept[state.cluster];
  return make("div", {}, title, [["Kept", stays], ["Pruned", size - stays]].map(([word, rows], side) => [
    make("div", { class: "side" }, word, make("small", {}, `${many(rows, "row")}; ${sides[side].length} shown, nearest to the centroid first`)),
    sides[side].length ? make("ul", { class: "pictures" }, sides[side]) : make("p", { class: "about" }, "none of the sample"),
  ]));
}

function sizeBars(one, order, kept, quotas, state) {
  const bySize = [...order].sort((a, b) => one.size[b] - one.size[a]);
  const box = { left: 56, right: 1085, top: 12, bottom: 170 };
  const most = one.size[bySize[0]] || 1, wide = (box.right - box.left) / bySize.length;
  const svg = draw("svg", { viewBox: "0 0 1100 212", class: "wide", role: "img", "aria-label": `sizes of ${order.length} clusters before and after` });
  const y = scale(0, most, box.bottom, box.top);
  axes(svg, box, (v) => v, y, [], ticks(0, most, 4), `clusters, largest first: before (pale), kept by ${state.arm} (dark)${quotas ? ", quota at the temperature (line)" : ""}`, "rows", (v) => v, short);
  const block = (values, ink) => draw("path", { fill: ink, d: bySize.map((at, i) => `M${(box.left + i * wide).toFixed(2)},${box.bottom}V${y(values[at]).toFixed(1)}h${(wide * (wide > 3 ? 0.86 : 1)).toFixed(2)}V${box.bottom}z`).join("") });
  svg.append(block(one.size, "var(--select)"), block(kept, "var(--accent)"));
  if (quotas) svg.append(draw("path", { fill: "none", stroke: "var(--warn)", "stroke-width": 1.6, d: bySize.map((at, i) => `${i ? "L" : "M"}${(box.left + i * wide).toFixed(2)},${y(quotas[at]).toFixed(1)}h${(wide * 0.9).toFixed(2)}`).join("") }));
  return make("div", {}, make("h3", { style: { marginTop: 0 } }, "Sizes before and after"), svg);
}
