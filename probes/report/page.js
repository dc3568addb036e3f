"use strict";
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const [figures, tables, palette] = ["figures", "tables", "palette"].map(read);
const [GAP, WIDE] = [24, 560];
const views = new Map();

// Data

const unpacked = new Map();
function rows(number) {
  if (!unpacked.has(number)) {
    const { n, columns } = tables[number];
    const at = Object.entries(columns).map(([name, values]) => [
      name, Array.isArray(values) ? (i) => values[i] : (i) => values.names[values.codes[i]],
    ]);
    unpacked.set(number, Array.from({ length: n }, (_, i) => Object.fromEntries(at.map(([name, get]) => [name, get(i)]))));
  }
  return unpacked.get(number);
}

const figureOf = (element) => figures[element.closest("figure").querySelector(".chart").dataset.chart];

function chosen(element) {
  const selects = element.closest("[data-panel]").querySelectorAll("select");
  return Object.fromEntries([...selects].map((select) => [select.dataset.param, JSON.parse(select.value)]));
}

// Charts

const onScreen = { ink: "var(--ink)", soft: "var(--soft)", line: "var(--line)", colours: palette.map((_, i) => `var(--c${i})`) };
const onPaper = { ink: "#1b1f24", soft: "#59636e", line: "#d8dee4", background: "#ffffff", colours: palette };

function config({ ink, soft, line, background, colours }, width) {
  return {
    background: background ?? "transparent",
    font: getComputedStyle(document.body).fontFamily,
    view: { stroke: null },
    // A chart says what it shows as a whole, and has a table: a name for each of thousands of cells would bury both.
    mark: { color: colours[0], aria: false },
    title: { color: ink },
    text: { color: soft },
    axis: {
      labelColor: soft, titleColor: ink, titleFontWeight: "normal", labelFontSize: 12, titleFontSize: 13,
      gridColor: line, domainColor: line, tickColor: line,
    },
    legend: {
      symbolOpacity: 1, labelColor: ink, titleColor: ink, titleFontWeight: "normal", labelFontSize: 12, titleFontSize: 12,
      columns: width < WIDE ? 1 : 2, labelLimit: (width < WIDE ? width : width / 2) - 2 * GAP,
    },
    range: { category: colours },
  };
}

function specification(element) {
  const { spec, data } = figures[element.dataset.chart];
  const values = chosen(element);
  const params = (spec.params ?? []).map((param) => (param.name in values ? { ...param, value: values[param.name] } : param));
  const datasets = Object.fromEntries(Object.entries(data).map(([name, number]) => [name, rows(number)]));
  return { ...spec, params, datasets };
}

async function draw(element) {
  const { view } = await vegaEmbed(element, specification(element), {
    mode: "vega-lite", renderer: "svg", config: config(onScreen, element.clientWidth), actions: false,
    tooltip: { theme: "custom" },
    // Errors alone: that a metric has no baseline, or a probe no penalty, is worth no warning.
    logLevel: 1,
  });
  views.set(element, view);
}

async function drawAll() {
  for (const element of document.querySelectorAll(".chart")) {
    await draw(element);
    // The reader's clicks come before the charts further down.
    await new Promise((resolve) => setTimeout(resolve));
  }
  document.documentElement.dataset.drawn = "";
}
drawAll();

// Choices

function follow(select) {
  for (const other of select.closest("[data-panel]").querySelectorAll("select[data-follows]")) {
    const [value, all] = JSON.parse(other.dataset.follows)[JSON.parse(select.value)] ?? [];
    for (const option of all ? other.options : []) option.hidden = option.disabled = !all.includes(JSON.parse(option.value));
    if (all) other.value = JSON.stringify(value);
  }
}

document.addEventListener("change", ({ target }) => {
  if (target.dataset.param === undefined) return;
  follow(target);
  const panel = target.closest("[data-panel]");
  for (const element of panel.querySelectorAll(".chart")) {
    const view = views.get(element);
    for (const param of view ? figures[element.dataset.chart].spec.params ?? [] : []) {
      const values = chosen(element);
      if (param.name in values) view.signal(param.name, values[param.name]);
    }
    view?.runAsync();
  }
  panel.querySelectorAll("details.rows[open]").forEach(fillTable);
});
document.querySelectorAll('select[data-param="curve"]').forEach(follow);

// Tables and files

function fillTable(details) {
  const { data, titles } = figureOf(details);
  const values = Object.entries(chosen(details));
  const kept = rows(data.data).filter((row) => values.every(([name, value]) => !(name in row) || value === "all" || row[name] === value));
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  for (const title of Object.values(titles)) {
    head.append(Object.assign(document.createElement("th"), { scope: "col", textContent: title }));
  }
  const body = table.createTBody();
  for (const row of kept) {
    const line = body.insertRow();
    for (const name of Object.keys(titles)) line.insertCell().textContent = row[name] ?? "–";
  }
  const region = Object.assign(document.createElement("div"), { className: "table", tabIndex: 0, role: "region" });
  region.ariaLabel = "Table of the chart";
  region.append(table);
  details.querySelector(".table")?.remove();
  details.append(region);
}
document.querySelectorAll("details.rows").forEach((details) => details.addEventListener("toggle", () => {
  if (details.open) fillTable(details);
}));

function csv({ data, titles }) {
  const cell = (value) => (/[",\n\r]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const line = (values) => values.map((value) => cell(String(value ?? ""))).join(",");
  const names = Object.keys(titles);
  return [line(Object.values(titles)), ...rows(data.data).map((row) => line(names.map((name) => row[name])))].join("\n") + "\n";
}

async function picture(element, kind) {
  const width = element.clientWidth;
  const { view, finalize } = await vegaEmbed(document.createElement("div"), { ...specification(element), width }, {
    mode: "vega-lite", config: config(onPaper, width), actions: false, logLevel: 1,
  });
  const address = await view.toImageURL(kind, kind === "png" ? 2 : 1);
  finalize();
  return address;
}

document.addEventListener("click", async ({ target }) => {
  const kind = target.dataset.save;
  if (kind === undefined) return;
  const figure = figureOf(target);
  const address = kind === "csv"
    ? URL.createObjectURL(new Blob([csv(figure)], { type: "text/csv" }))
    : await picture(target.closest("figure").querySelector(".chart"), kind);
  const name = figure.name.replace(/[^\p{L}\p{N}._-]+/gu, "-");
  Object.assign(document.createElement("a"), { href: address, download: `${name}.${kind}` }).click();
});

// Paper

addEventListener("beforeprint", () => document.querySelectorAll("section > details").forEach((details) => { details.open = true; }));

document.getElementById("copy").addEventListener("click", async () => {
  const text = document.getElementById("provenance-text");
  try {
    await navigator.clipboard.writeText(text.textContent);
    document.getElementById("copied").textContent = "Copied";
  } catch {
    // Browsers keep the clipboard from some local files: select the text for the user's own copy.
    getSelection().selectAllChildren(text);
  }
});
