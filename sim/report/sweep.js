// The page of a sweep.

const columnNames = data.columns.map((column) => column.name);
const cells = Object.fromEntries(data.columns.map((column) =>
  [column.name, column.cells || column.indices.map((idx) => column.values[idx])]));
const numRows = cells.point.length;
const rows = Array.from({ length: numRows }, (_, r) => columnNames.map((name) => cells[name][r]));
const okRows = rows.map((_, r) => r).filter((r) => cells.status[r] === "ok");
const number = (name, r) => (cells[name][r] === "" ? null : Number(cells[name][r]));

// Shares that the columns imply.
const DERIVED = { communication_share: (r) => number("communication_s", r) / number("layer_time_s", r) };
const value = (metric, r) => (metric in DERIVED ? DERIVED[metric](r) : number(metric, r));

const axes = columnNames.filter((name) => name.startsWith("set."));
const runs = cells.run ? [...new Set(okRows.map((r) => cells.run[r]))] : [];
const isExact = (run) => cells.exact[okRows.find((r) => cells.run[r] === run)] === "true";
const runLabel = (run) => (isExact(run) ? run : `${run} (not exact)`);
const title = (name) => name.replace(/^set\./, "");

// An axis' values in the order of the sweep, or by size where all are numbers with or without one unit.
function valuesOf(axis, among = okRows) {
  const values = [...new Set(among.map((r) => cells[axis][r]))];
  const size = (text) => parseFloat(text);
  return values.every((text) => !Number.isNaN(size(text))) && new Set(values.map((text) => text.replace(/^[-+0-9.e]+/, ""))).size === 1
    ? values.sort((a, b) => size(a) - size(b)) : values;
}

function metrics() {
  const preferred = ["speedup_over_dedup_contiguous", "speedup_over_standard", "speedup_over_baseline", "layer_time_s", "communication_share"];
  const isMetric = (name) => !name.startsWith("set.") && !["point", "status", "error"].includes(name) &&
    okRows.some((r) => cells[name][r] !== "") && okRows.every((r) => cells[name][r] === "" || !Number.isNaN(Number(cells[name][r])));
  const known = columnNames.filter(isMetric);
  return [...preferred.filter((name) => name in DERIVED || known.includes(name)), ...known.filter((name) => !preferred.includes(name))];
}

// Choosers that fix the axes which are not shown: one value, or all of them.
function fixers(shown, redraw) {
  const box = element("span", { class: "controls" });
  const chosen = {};
  const rebuild = () => {
    box.replaceChildren(...axes.filter((axis) => !shown().includes(axis) && valuesOf(axis).length > 1).map((axis) => {
      const pick = choice(title(axis), [["", "all"], ...valuesOf(axis).map((v) => [v, v])], chosen[axis] || "", () => {
        chosen[axis] = pick.value();
        redraw();
      });
      return pick;
    }));
  };
  const keep = (r) => axes.every((axis) => shown().includes(axis) || !chosen[axis] || cells[axis][r] === chosen[axis]);
  return { box, rebuild, keep };
}

function curves(xAxes, known) {
  const parent = section("Over one axis", "Each mark is the median over the points that are left open; bands span the least and the most of " +
    "them. Fix more axes to see single points.");
  const changed = () => { fixed.rebuild(); draw(); };
  const pickX = choice("over", xAxes.map((axis) => [axis, title(axis)]), xAxes[0], changed);
  const pickY = choice("show", known.map((name) => [name, name]), known[0], () => draw());
  const fixed = fixers(() => [pickX.value()], () => draw());
  parent.append(element("div", { class: "controls" }, pickX, pickY, fixed.box));
  const draw = chart(parent, 380, () => {
    const [x, metric] = [pickX.value(), pickY.value()];
    const labels = valuesOf(x);
    const format = formatterOf(metric);
    const datasets = [];
    runs.forEach((run, i) => {
      const groups = labels.map((label) => okRows.filter((r) => cells.run[r] === run && cells[x][r] === label && fixed.keep(r))
        .map((r) => value(metric, r)).filter((v) => v !== null && Number.isFinite(v)));
      const series = (pick) => groups.map((group) => (group.length ? pick(group) : null));
      const colour = at(COLOURS, i);
      datasets.push({ label: runLabel(run), data: series(median), borderColor: colour, backgroundColor: colour, borderDash: at(DASHES, i),
        pointStyle: at(MARKS, i), borderWidth: 2, pointRadius: 4, spanGaps: true, run });
      if (groups.some((group) => group.length > 1)) {
        const band = { borderWidth: 0, pointRadius: 0, backgroundColor: `${colour}1c`, band: true, spanGaps: true, run };
        datasets.push({ ...band, label: "", data: series((g) => Math.max(...g)), fill: "+1" }, { ...band, label: "", data: series((g) => Math.min(...g)) });
      }
    });
    const positive = datasets.every((set) => set.data.every((v) => v === null || v > 0));
    const all = datasets.flatMap((set) => set.data).filter((v) => v !== null);
    const wide = positive && all.length > 0 && Math.max(...all) > 30 * Math.min(...all);
    return {
      type: "line", data: { labels, datasets },
      options: {
        scales: {
          x: { title: { display: true, text: title(x) } },
          y: { type: wide ? "logarithmic" : "linear", title: { display: true, text: metric }, ticks: { callback: (v) => format(v) } },
        },
        plugins: {
          legend: {
            position: "bottom", labels: { usePointStyle: true, filter: (item) => item.text !== "" },
            onClick: (event, item, legend) => {  // a run's band goes with its line
              const { run } = legend.chart.data.datasets[item.datasetIndex];
              const visible = !legend.chart.isDatasetVisible(item.datasetIndex);
              legend.chart.data.datasets.forEach((set, i) => { if (set.run === run) legend.chart.setDatasetVisibility(i, visible); });
              legend.chart.update();
            },
          },
          tooltip: { filter: (item) => !item.dataset.band, callbacks: { label: (item) => `${item.dataset.label}: ${format(item.parsed.y)}` } },
        },
      },
    };
  });
  changed();
}

function heatMap(xAxes, known) {
  if (xAxes.length < 2) return;
  const parent = section("Over two axes", "Median over the points that are left open.");
  const changed = () => { fixed.rebuild(); draw(); };
  const pickRun = choice("run", runs.map((run) => [run, runLabel(run)]), runs.filter(isExact).pop() || runs[0], () => draw());
  const pickMetric = choice("show", known.map((name) => [name, name]), known[0], () => draw());
  const pickX = choice("across", xAxes.map((axis) => [axis, title(axis)]), xAxes[0], changed);
  const pickY = choice("down", xAxes.map((axis) => [axis, title(axis)]), xAxes[1], changed);
  const fixed = fixers(() => [pickX.value(), pickY.value()], () => draw());
  const box = element("div", { id: "heat-map", class: "scroll" });
  parent.append(element("div", { class: "controls" }, pickRun, pickMetric, pickX, pickY, fixed.box), box);

  function draw() {
    const [x, y, metric] = [pickX.value(), pickY.value(), pickMetric.value()];
    const [across, down] = [valuesOf(x), valuesOf(y)];
    const format = formatterOf(metric);
    const grid = down.map((b) => across.map((a) => {
      const found = okRows.filter((r) => cells.run[r] === pickRun.value() && cells[x][r] === a && cells[y][r] === b && fixed.keep(r))
        .map((r) => value(metric, r)).filter((v) => v !== null && Number.isFinite(v));
      return found.length ? median(found) : null;
    }));
    const all = grid.flat().filter((v) => v !== null);
    const [least, most] = [Math.min(...all), Math.max(...all)];
    const longest = Math.max(...across.map((a) => a.length)) * 7.2 + 10;  // of a label, in pixels
    const [left, top, cellW, cellH] = [150, 8, Math.max(62, longest, Math.min(110, 820 / across.length)), 30];
    const [width, height] = [Math.max(left + across.length * cellW + 10, 760), top + down.length * cellH + 48];
    const svg = svgElement("svg", { viewBox: `0 0 ${width} ${height}`, width, role: "img", "aria-label": `${metric} over ${title(x)} and ${title(y)}` });
    down.forEach((b, j) => {
      svg.append(svgElement("text", { x: left - 8, y: top + j * cellH + 20, "font-size": 12, "text-anchor": "end" }, b));
      across.forEach((_, i) => {
        const v = grid[j][i];
        const share = v === null || most === least ? 0 : (v - least) / (most - least);
        svg.append(svgElement("rect", { x: left + i * cellW, y: top + j * cellH, width: cellW - 1, height: cellH - 1, fill: v === null ? "#eeeeee" : shade(share * 0.9) }));
        if (v !== null) {
          svg.append(svgElement("text", { x: left + (i + 0.5) * cellW, y: top + j * cellH + 20, "font-size": 12, "text-anchor": "middle", fill: share > 0.55 ? "#ffffff" : "#1b1f24" }, format(v)));
        }
      });
    });
    across.forEach((a, i) => svg.append(svgElement("text", { x: left + (i + 0.5) * cellW, y: top + down.length * cellH + 16, "font-size": 12, "text-anchor": "middle" }, a)));
    svg.append(svgElement("text", { x: left, y: height - 8, "font-size": 12, fill: "#5b6570" }, `across: ${title(x)}; down: ${title(y)}; cells: ${metric}`));
    box.replaceChildren(svg);
  }
  changed();
}

// One line per sentence: a limit that many points hit is one finding. All rows hold each of them.
function failures() {
  const points = new Map();  // sentence -> points
  rows.forEach((_, r) => {
    if (cells.status[r] === "ok") return;
    if (!points.has(cells.error[r])) points.set(cells.error[r], []);
    points.get(cells.error[r]).push(cells.point[r]);
  });
  if (!points.size) return;
  const parent = section("Failed points", "By sentence, most frequent first. Run them again with coterie sweep ... --retry-failed.");
  const head = element("tr", {}, element("th", {}, "points"), element("th", { class: "text" }, "sentence"), element("th", { class: "text" }, "first point"));
  const lines = [...points].sort((a, b) => b[1].length - a[1].length).map(([sentence, of]) => element("tr", {},
    element("td", {}, String(of.length)), element("td", { class: "text sentence" }, sentence), element("td", { class: "text" }, of[0])));
  parent.append(element("div", { class: "scroll" }, element("table", { id: "failed" }, element("thead", {}, head), element("tbody", {}, ...lines))));
}

if (okRows.length) {
  const known = metrics();
  const varying = axes.filter((axis) => valuesOf(axis).length > 1);
  const shown = varying.length ? varying : axes.slice(0, 1);
  if (shown.length) {
    curves(shown, known);
    heatMap(shown, known);
  }
}
failures();
const command = element("pre", { id: "command" }, "Click a row for the command that runs its point again.");
document.getElementById("rows").append(command);
showTable(document.getElementById("rows"), columnNames, rows, (r) => { command.textContent = data.commands[cells.point[r]] || "no command recorded"; });
facts(`Base experiment (${data.base})`, data.configuration);
facts("Baseline of the sweep", data.baseline ? JSON.stringify(data.baseline, null, 1) : "");
document.documentElement.dataset.ready = "yes";
