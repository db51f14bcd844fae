"use strict";
// What both pages share: the data, elements, numbers for people, colours, charts, heat maps.

const data = JSON.parse(document.getElementById("data").textContent);

// Colours that stay apart in greyscale and for the colour-blind (Okabe and Ito), with a dash and a
// mark each, so that no series depends on its colour alone.
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#8c6d31"];
const DASHES = [[], [7, 3], [2, 2], [7, 3, 2, 3], [], [7, 3], [2, 2], [7, 3, 2, 3]];
const MARKS = ["circle", "rect", "triangle", "rectRot", "crossRot", "star", "circle", "rect"];
const at = (list, idx) => list[idx % list.length];

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function svgElement(tag, attributes = {}, text = null) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== null) node.textContent = text;
  return node;
}

// Three significant digits.
function formatNumber(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2);
  return size >= 100 ? Math.round(value).toLocaleString("en-US") : String(Number(value.toPrecision(3)));
}

function formatSeconds(seconds) {
  if (seconds === 0) return "0";
  const size = Math.abs(seconds);
  const [scale, unit] = size >= 1 ? [1, "s"] : size >= 1e-3 ? [1e3, "ms"] : size >= 1e-6 ? [1e6, "us"] : [1e9, "ns"];
  return `${Number((seconds * scale).toPrecision(3))} ${unit}`;
}

function formatBytes(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let idx = 0;
  while (Math.abs(bytes) >= 1024 && idx + 1 < units.length) {
    bytes /= 1024;
    ++idx;
  }
  return `${Number(bytes.toPrecision(3))} ${units[idx]}`;
}

// The unit of a column is in its name.
function formatterOf(column) {
  if (/_s$/.test(column)) return formatSeconds;
  if (/_bytes(_|$)/.test(column)) return formatBytes;
  if (/^speedup_/.test(column)) return (value) => `${value.toFixed(2)}x`;
  if (/_share$|utilization$/.test(column)) return (value) => `${(100 * value).toFixed(0)} %`;
  return formatNumber;
}

const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
};

function section(title, note) {
  const node = element("section", {}, element("h2", {}, title));
  if (note) node.append(element("p", { class: "note" }, note));
  document.getElementById("plots").append(node);
  return node;
}

function choice(label, options, chosen, changed) {
  const select = element("select", { onchange: changed });
  for (const [value, text] of options) {
    const option = element("option", { value }, text);
    option.selected = value === chosen;
    select.append(option);
  }
  const node = element("label", {}, `${label} `, select);
  node.value = () => select.value;
  return node;
}

Chart.defaults.animation = false;
Chart.defaults.maintainAspectRatio = false;
Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
Chart.defaults.color = "#1b1f24";

// `build` gives the configuration of Chart.js; calling the result draws anew.
function chart(parent, heightPx, build) {
  const box = element("div", { class: "chart" });
  const canvas = element("canvas", { role: "img" });
  box.append(canvas);
  parent.append(box);
  let drawn = null;
  return () => {
    if (drawn !== null) drawn.destroy();
    const config = build();
    box.style.height = `${typeof heightPx === "function" ? heightPx() : heightPx}px`;
    drawn = new Chart(canvas, config);
  };
}

// Draws [low, high] over each point of datasets that have `intervals`: whiskers on bars (along the
// bar) and on points.
const intervalPlugin = {
  id: "intervals",
  afterDatasetsDraw(plot) {
    const context = plot.ctx;
    const flat = plot.options.indexAxis === "y";
    const scale = plot.scales[flat ? "x" : "y"];
    context.save();
    context.strokeStyle = "#1b1f24";
    context.lineWidth = 1.2;
    plot.data.datasets.forEach((dataset, idx) => {
      if (!dataset.intervals || !plot.isDatasetVisible(idx)) return;
      plot.getDatasetMeta(idx).data.forEach((point, i) => {
        const interval = dataset.intervals[i];
        if (!interval || interval[0] === null) return;
        const [low, high] = interval.map((value) => scale.getPixelForValue(value));
        const across = flat ? point.y : point.x;
        const line = (x0, y0, x1, y1) => {
          context.beginPath();
          context.moveTo(...(flat ? [x0, y0] : [y0, x0]));
          context.lineTo(...(flat ? [x1, y1] : [y1, x1]));
          context.stroke();
        };
        line(low, across, high, across);
        line(low, across - 4, low, across + 4);
        line(high, across - 4, high, across + 4);
      });
    });
    context.restore();
  },
};

// Light to dark blue, for shares of 0 to 1; dark enough for its text to turn white above 0.55.
function shade(share) {
  const t = Math.min(1, Math.max(0, share));
  const mix = (from, to) => Math.round(from + (to - from) * t);
  return `rgb(${mix(247, 8)},${mix(251, 48)},${mix(255, 107)})`;
}

function seconds_axis(title) {
  return { title: { display: true, text: title }, ticks: { callback: (value) => formatSeconds(value) } };
}

function facts(title, text) {
  if (!text) return;
  document.getElementById("details").append(
    element("details", {}, element("summary", {}, title), element("pre", {}, text)));
}
