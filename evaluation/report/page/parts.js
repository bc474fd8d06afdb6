// Small parts that all sections are made of. Every text enters the page through textContent.

const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const PALETTE = ["#0b7285", "#c2410c", "#6d4aa8", "#2f7d32", "#b3246b", "#8a6d00", "#3267c4", "#6b5b50", "#0f8f6d", "#a04030"];
const DASHES = ["", "6 3", "2 3", "8 3 2 3"];

function make(tag, attributes, ...inside) {
  const element = document.createElement(tag);
  return filled(element, attributes, inside);
}

function draw(tag, attributes, ...inside) {
  return filled(document.createElementNS(SVG, tag), attributes, inside);
}

function filled(element, attributes, inside) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const part of inside.flat(3)) {
    if (part === null || part === undefined || part === false) continue;
    element.append(part instanceof Node ? part : document.createTextNode(String(part)));
  }
  return element;
}

const count = (value) => (value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en-US"));
const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
const number = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const many = (value, word) => `${count(value)} ${word}${value === 1 ? "" : "s"}`;

function short(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 1e12) return value.toExponential(1);
  for (const [unit, letter] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]])
    if (size >= unit) return `${+(value / unit).toPrecision(3)}${letter}`;
  return String(+value.toPrecision(3));
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 90) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 5400) return `${(seconds / 60).toFixed(0)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

function section(id, title, about) {
  const place = make("section", { id, "aria-labelledby": `${id}-title` },
    make("h2", { id: `${id}-title` }, title), about && make("p", { class: "about" }, about));
  document.getElementById("main").append(place);
  document.getElementById("nav").append(make("a", { href: `#${id}` }, title));
  return place;
}

const note = (text, warns) => make("li", { class: warns ? "note warn" : "note" }, text);
const notes = (texts, warns) => (texts.length ? make("ul", { class: "notes" }, texts.map((text) => note(text, warns))) : "");

function choose(label, options, value, change) {
  const field = make("select", { onchange: () => change(field.value) },
    options.map(([key, text]) => make("option", { value: key, selected: String(key) === String(value) }, text)));
  return make("label", {}, label, field);
}

// A table whose heading sorts it: rows hold {cells: [{text, second, bold, sort, node}], words}.
function sortable(headings, rows, attributes) {
  const body = make("tbody");
  const marks = [];
  let by = null, rises = false, words = "";
  function show() {
    const wanted = rows.filter((row) => row.words.includes(words));
    if (by !== null) {
      const key = (row) => row.cells[by] ? row.cells[by].sort : null;
      wanted.sort((a, b) => {
        const first = key(a), second = key(b);
        if (first === null || first === undefined) return second === null || second === undefined ? 0 : 1;
        if (second === null || second === undefined) return -1;
        const order = typeof first === "string" ? first.localeCompare(second, "en", { numeric: true }) : first - second;
        return rises ? order : -order;
      });
    }
    body.replaceChildren(...wanted.map((row) => row.node));
  }
  const head = make("tr", {}, headings.map((heading, at) => {
    const mark = make("th", { scope: "col", title: heading.about, "aria-sort": "none" },
      make("button", { class: "plain", type: "button", onclick: () => {
        rises = by === at ? !rises : heading.rises === true;
        by = at;
        marks.forEach((other) => other.setAttribute("aria-sort", "none"));
        mark.setAttribute("aria-sort", rises ? "ascending" : "descending");
        show();
      } }, heading.label));
    marks.push(mark);
    return mark;
  }));
  show();
  const table = make("table", attributes, make("thead", {}, head), body);
  return { table, filter: (text) => { words = text.trim().toLowerCase(); show(); return body.children.length; } };
}

// Pictures: cells of sheets that are turned into images when the first of them is shown.
const sheets = new Map();

function sheetOf(at) {
  if (!sheets.has(at)) {
    const text = atob(document.getElementById(`sheet-${at}`).textContent);
    const bytes = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
    sheets.set(at, URL.createObjectURL(new Blob([bytes], { type: "image/webp" })));
  }
  return sheets.get(at);
}

function thumb(sample) {
  const { cell, columns, on_a_sheet } = data.pictures;
  const name = sample.caption === null ? sample.uid : sample.caption;
  if (sample.picture === null)
    return make("div", { class: "thumb", role: "img", "aria-label": `no picture of ${name}` }, "no picture");
  const place = sample.picture % on_a_sheet;
  return make("div", { class: "thumb", role: "img", "aria-label": name, title: sample.uid, style: {
    backgroundImage: `url(${sheetOf(Math.floor(sample.picture / on_a_sheet))})`,
    backgroundPosition: `-${(place % columns) * cell}px -${Math.floor(place / columns) * cell}px`,
  } });
}

const caption = (text) => text === null
  ? make("div", { class: "caption soft" }, "caption cannot be read")
  : make("div", { class: "caption", dir: "auto", title: text }, text);

const pictureCard = (sample, ...lines) => make("li", { class: "picture" }, thumb(sample), caption(sample.caption),
  lines.map((line) => make("div", {}, line)));

// Scales and axes of charts.
function scale(low, high, from, to, logarithmic) {
  const f = logarithmic ? (v) => Math.log(v) : (v) => v;
  const span = f(high) - f(low) || 1;
  return (value) => from + ((f(value) - f(low)) / span) * (to - from);
}

function ticks(low, high, wanted) {
  const step = 10 ** Math.floor(Math.log10((high - low || 1) / wanted));
  const times = [1, 2, 5, 10].find((t) => (high - low) / (t * step) <= wanted) || 10;
  const found = [];
  for (let v = Math.ceil(low / (times * step) - 1e-9) * times * step; v <= high + 1e-9 * step; v += times * step)
    found.push(+v.toPrecision(12));
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const times of [1, 2, 5]) {
      const value = +(times * 10 ** power).toPrecision(6);
      if (value >= low * 0.999 && value <= high * 1.001) found.push(value);
    }
  return found.length > 7 ? found.filter((value) => /^1/.test(value.toExponential())) : found;
}

function axes(svg, box, x, y, xTicks, yTicks, xLabel, yLabel, xText, yText) {
  for (const tick of yTicks)
    svg.append(draw("line", { class: "grid", x1: box.left, x2: box.right, y1: y(tick), y2: y(tick) }),
      draw("text", { x: box.left - 7, y: y(tick) + 4, "text-anchor": "end" }, yText(tick)));
  for (const tick of xTicks)
    svg.append(draw("line", { class: "axis", x1: x(tick), x2: x(tick), y1: box.bottom, y2: box.bottom + 4 }),
      draw("text", { x: x(tick), y: box.bottom + 17, "text-anchor": "middle" }, xText(tick)));
  svg.append(draw("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }),
    draw("text", { x: (box.left + box.right) / 2, y: box.bottom + 36, "text-anchor": "middle" }, xLabel),
    draw("text", { transform: `translate(13 ${(box.top + box.bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, yLabel));
}

// Viridis at sixteen places, and a colour between them.
const VIRIDIS = ["#440154", "#481a6c", "#472f7d", "#414487", "#39568c", "#31688e", "#2a788e", "#23888e", "#1f988b",
  "#22a884", "#35b779", "#54c568", "#7ad151", "#a5db36", "#d2e21b", "#fde725"];
const colour = (share) => VIRIDIS[Math.max(0, Math.min(15, Math.round(15 * share)))];
