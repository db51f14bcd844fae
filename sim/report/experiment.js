// The page of an experiment.

const PHASES = {  // in the order of a layer; communication is hatched by its darker colour
  notify: "#999999", pack: "#f0e442", dispatch: "#0072b2", expand: "#f3d08a", mlp: "#d55e00",
  merge: "#e69f00", combine: "#009e73", sum: "#cc79a7", wait: "#e3e6e9",
};
const label = (run) => (run.exact ? run.name : `${run.name} (not exact)`);
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const meanOfLayers = (run, pick) => mean(run.layers.map(pick));

function runTable() {
  const parent = section("Runs", "Layer time: slowest rank, mean over layers. Speed-ups compare with standard dispatch and " +
    "with the honest baseline of a placement, dedup + contiguous; a run that is not exact changes the model's output.");
  const body = element("tbody");
  const ratio = (value) => (value === null ? "–" : `${value.toFixed(2)}x`);
  for (const run of data.runs) {
    const low = run.layers.every((layer) => layer.low_s !== null)
      ? `${formatSeconds(meanOfLayers(run, (l) => l.low_s))} to ${formatSeconds(meanOfLayers(run, (l) => l.high_s))}` : "–";
    body.append(element("tr", { "data-run": run.name },
      element("th", {}, run.name, run.exact ? null : element("span", { class: "warn" }, " not exact")),
      element("td", { class: "text" }, run.policy), element("td", { class: "text" }, run.placement),
      element("td", { "data-value": run.mean_time_s }, formatSeconds(run.mean_time_s)), element("td", {}, low),
      element("td", {}, ratio(run.speedup_over_standard)), element("td", {}, ratio(run.speedup_over_dedup_contiguous)),
      element("td", {}, run.weight_lost === null ? "–" : `${(100 * run.weight_lost).toFixed(1)} %`),
      element("td", { class: "text" }, run.timeline === null ? "–" : element("a", { href: run.timeline, download: "" }, "timeline"))));
  }
  const names = ["run", "policy", "placement", "layer time", "interval", "vs standard", "vs dedup+contiguous", "router weight lost", "for Perfetto"];
  parent.append(element("div", { class: "scroll" }, element("table", { id: "runs" },
    element("thead", {}, element("tr", {}, ...names.map((name, i) => element("th", { class: i < 3 || i === 8 ? "text" : null }, name)))), body)));
}

function timeShares() {
  const phases = Object.keys(PHASES).filter((phase) => data.runs.some((run) => run.layers.some((layer) => layer.shares[phase] > 0)));
  if (phases.length === 0) return;  // a bound knows none
  const parent = section("Where the time goes", "The rank that ends a layer last: each part without overlap, mean over layers; waits for slower ranks stand apart. " +
    "Whiskers: the interval of the layer time, where it is known.");
  const datasets = phases.map((phase) => ({
    label: phase, data: data.runs.map((run) => meanOfLayers(run, (layer) => layer.shares[phase] || 0)),
    backgroundColor: PHASES[phase], borderColor: "#ffffff", borderWidth: 1,
  }));
  datasets[datasets.length - 1].intervals = data.runs.map((run) =>
    run.layers.every((layer) => layer.low_s !== null)
      ? [meanOfLayers(run, (layer) => layer.low_s), meanOfLayers(run, (layer) => layer.high_s)] : null);
  const axis = seconds_axis("time of a layer on the rank that ends it");
  const highs = datasets[datasets.length - 1].intervals.filter((interval) => interval !== null).map((interval) => interval[1]);
  if (highs.length) axis.suggestedMax = Math.max(...highs) * 1.02;
  chart(parent, () => 70 + 34 * data.runs.length, () => ({
    type: "bar", data: { labels: data.runs.map(label), datasets }, plugins: [intervalPlugin],
    options: {
      indexAxis: "y",
      scales: { x: { stacked: true, ...axis }, y: { stacked: true, grid: { display: false } } },
      plugins: { legend: { position: "bottom" }, tooltip: { callbacks: { label: (item) => `${item.dataset.label}: ${formatSeconds(item.parsed.x)}` } } },
    },
  }))();
}

function layerTimes() {
  if (data.runs[0].layers.length < 2) return;
  const parent = section("Layer by layer", "Click a name to hide its line.");
  const axis = seconds_axis("layer time");
  const highs = data.runs.flatMap((run) => run.layers.map((layer) => layer.high_s)).filter((high) => high !== null);
  if (highs.length) axis.suggestedMax = Math.max(...highs) * 1.02;
  chart(parent, 320, () => ({
    type: "line", plugins: [intervalPlugin],
    data: {
      labels: data.runs[0].layers.map((layer) => layer.layer),
      datasets: data.runs.map((run, i) => ({
        label: label(run), data: run.layers.map((layer) => layer.time_s), intervals: run.layers.map((layer) => [layer.low_s, layer.high_s]),
        borderColor: at(COLOURS, i), backgroundColor: at(COLOURS, i), borderDash: at(DASHES, i), pointStyle: at(MARKS, i), borderWidth: 2, pointRadius: 4,
      })),
    },
    options: {
      scales: { x: { title: { display: true, text: "MoE layer" } }, y: { beginAtZero: true, ...axis } },
      plugins: { legend: { position: "bottom", labels: { usePointStyle: true } }, tooltip: { callbacks: { label: (item) => `${item.dataset.label}: ${formatSeconds(item.parsed.y)}` } } },
    },
  }))();
}

// Rows are links, columns are time; above them, when each phase is under way on any rank.
function drawLoads(box, layer) {
  const loads = layer.loads;
  const [left, top, rowPx, width] = [190, 8, 17, 1000];
  const spans = Object.entries(layer.spans).filter(([phase]) => phase in PHASES);
  const gridTop = top + spans.length * 9 + 6;
  const height = gridTop + loads.links.length * rowPx + 34;
  const x = (s) => left + ((width - left - 10) * (s - loads.begin_s)) / (loads.end_s - loads.begin_s);
  const svg = svgElement("svg", { viewBox: `0 0 ${width} ${height}`, width, role: "img", "aria-label": "load of links over time" });
  spans.forEach(([phase, [begin, end]], i) => {
    const bar = svgElement("rect", { x: x(begin), y: top + i * 9, width: Math.max(1, x(end) - x(begin)), height: 8, fill: PHASES[phase] });
    bar.append(svgElement("title", {}, `${phase}: ${formatSeconds(begin)} to ${formatSeconds(end)}`));
    svg.append(bar, svgElement("text", { x: left - 6, y: top + i * 9 + 7, "font-size": 9, "text-anchor": "end" }, phase));
  });
  loads.links.forEach((link, row) => {
    const full = link.capacity_GBps || Math.max(...link.GBps);
    svg.append(svgElement("text", { x: left - 6, y: gridTop + row * rowPx + 12, "font-size": 11, "text-anchor": "end" }, link.name));
    link.GBps.forEach((value, bin) => {
      const step = (width - left - 10) / link.GBps.length;
      const cell = svgElement("rect", { x: left + bin * step, y: gridTop + row * rowPx, width: step + 0.3, height: rowPx - 1, fill: shade(value / full) });
      const time = loads.begin_s + ((bin + 0.5) / link.GBps.length) * (loads.end_s - loads.begin_s);
      cell.append(svgElement("title", {}, `${link.name} at ${formatSeconds(time)}: ${formatNumber(value)} GB/s` +
        (link.capacity_GBps ? ` of ${formatNumber(link.capacity_GBps)}` : "")));
      svg.append(cell);
    });
  });
  for (let tick = 0; tick <= 5; ++tick) {
    const s = loads.begin_s + (tick / 5) * (loads.end_s - loads.begin_s);
    svg.append(svgElement("text", { x: x(s), y: height - 18, "font-size": 11, "text-anchor": tick === 5 ? "end" : "middle" }, formatSeconds(s)));
  }
  svg.append(svgElement("text", { x: left, y: height - 4, "font-size": 11 },
    "time from the start of the layer; white: idle, dark blue: at capacity; hover for GB/s"));
  box.replaceChildren(svg);
}

function linkLoads() {
  const runs = data.runs.filter((run) => run.layers.some((layer) => layer.loads && layer.loads.links.length));
  if (!runs.length) return;
  const parent = section("Load of the busiest links", "What each of the busiest links carries while the layer runs. An idle stretch in " +
    "the middle is the expert MLP; a link that stays dark when others have gone white is what the layer waits for.");
  const box = element("div", { id: "loads", class: "scroll" });
  const draw = () => drawLoads(box, runs[Number(pickRun.value())].layers[Number(pickLayer.value())]);
  const pickRun = choice("run", runs.map((run, i) => [String(i), label(run)]), "0", () => draw());
  const pickLayer = choice("layer", runs[0].layers.map((layer, i) => [String(i), String(layer.layer)]), "0", () => draw());
  parent.append(element("div", { class: "controls" }, pickRun, pickLayer), box);
  draw();
}

runTable();
timeShares();
layerTimes();
linkLoads();
showTable(document.getElementById("rows"), data.csv.columns, data.csv.rows);
facts("Command", data.command);
facts("Configuration", data.configuration);
facts("Provenance", JSON.stringify(data.provenance, null, 1));
document.documentElement.dataset.ready = "yes";
