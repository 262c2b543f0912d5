"use strict";

const dark = matchMedia("(prefers-color-scheme: dark)");
const charts = [...document.querySelectorAll("script[data-chart]")].map((script) => ({
  place: document.getElementById(script.dataset.chart),
  ...JSON.parse(script.textContent),
}));

// The page's own colours, so that charts follow it into dark mode.
function themed(layout) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = { gridcolor: colour("--line"), linecolor: colour("--line"), zerolinecolor: colour("--line"), automargin: true };
  return {
    ...layout,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--muted"), activecolor: colour("--link") },
    font: { color: colour("--ink"), family: "system-ui, sans-serif", size: 13 },
    hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
    xaxis: { ...layout.xaxis, ...axis },
    yaxis: { ...layout.yaxis, ...axis },
  };
}

const options = {
  responsive: true,
  displaylogo: false,
  displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
};

function shownMethods() {
  return new Set([...document.querySelectorAll(".filter input:checked")].map((box) => box.value));
}

function draw() {
  const shown = shownMethods();
  for (const { place, data, layout } of charts) {
    const visible = data.map((trace) => ({ ...trace, visible: trace.meta == null || shown.has(trace.meta) }));
    Plotly.react(place, visible, themed(layout), options);
  }
}

function filter() {
  const shown = shownMethods();
  for (const element of document.querySelectorAll("[data-method]")) {
    element.hidden = !shown.has(element.dataset.method);
  }
  draw();
}

// Numbers by value, with "0.98 ± 0.01" as 0.98; other texts by letters; what is missing last.
function sort(button) {
  const head = button.closest("th");
  const body = head.closest("table").tBodies[0];
  const ascending = head.getAttribute("aria-sort") !== "ascending";
  const key = (row) => row.cells[head.cellIndex].textContent.trim();
  const before = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "-" || y === "-") return (x === "-") - (y === "-");
    const [m, n] = [parseFloat(x), parseFloat(y)];
    const order = Number.isNaN(m) || Number.isNaN(n) ? x.localeCompare(y) : m - n;
    return ascending ? order : -order;
  };
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  body.append(...[...body.rows].sort(before));
}

for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => sort(button));
}
for (const box of document.querySelectorAll(".filter input")) box.addEventListener("change", filter);
for (const button of document.querySelectorAll(".filter button")) {
  button.addEventListener("click", () => {
    for (const box of document.querySelectorAll(".filter input")) box.checked = Boolean(button.dataset.all);
    filter();
  });
}
// Sections that a link leads to begin below the filter, which may have several lines.
const bar = document.querySelector(".filter");
if (bar) {
  new ResizeObserver(() => {
    const height = getComputedStyle(bar).position === "sticky" ? bar.offsetHeight : 0;
    document.documentElement.style.setProperty("--filter", `${height}px`);
  }).observe(bar);
}
dark.addEventListener("change", draw);
draw();
