// The page of an experiment of whole steps.

const PARTS = {  // in the order of the report; computation in warm, communication in cold colours
  embedding: "#8c6d31", attention: "#d55e00", dense_mlp: "#e69f00", router: "#b2182b", experts: "#f3a05a", shared_experts: "#f0e442",
  permute: "#f3d08a", optimizer: "#cc79a7", notify: "#999999", dispatch: "#0072b2", combine: "#009e73", tensor: "#56b4e9",
  pipeline: "#41ab5d", gradients: "#5e4fa2", parameters: "#9e9ac8", bubble: "#d9dee3", wait: "#eef0f2",
};
const words = (name) => name.replace(/_/g, " ");

function stepTable() {
  const parent = section("Runs", "Communication: while the rank that ends last, or the pipeline stage with most to do, communicates; exposed: while it does nothing else. " +
    "Speed-ups compare with standard dispatch and with dedup + contiguous.");
  const ratio = (value) => (value === null ? "–" : `${value.toFixed(2)}x`);
  const body = element("tbody");
  for (const run of data.runs) {
    const step = run.step;
    const memory = Object.fromEntries(step.memory_bytes);
    body.append(element("tr", { "data-run": run.name }, element("th", {}, run.name),
      element("td", { "data-value": step.time_s }, formatSeconds(step.time_s)),
      element("td", {}, formatNumber(step.tokens_per_s_per_gpu)), element("td", {}, formatNumber(step.model_flops_per_s_per_gpu / 1e12)),
      element("td", {}, formatSeconds(step.communication_s)), element("td", {}, formatSeconds(step.exposed_communication_s)),
      element("td", {}, formatSeconds(step.bubble_s)),
      element("td", {}, memory.total ? `${formatBytes(memory.total)}${memory.available ? ` of ${formatBytes(memory.available)}` : ""}` : "–"),
      element("td", {}, ratio(run.speedup_over_standard)), element("td", {}, ratio(run.speedup_over_dedup_contiguous)),
      element("td", { class: "text" }, run.timeline === null ? "–" : element("a", { href: run.timeline, download: "" }, "timeline"))));
  }
  const names = ["run", "step", "tokens/s/GPU", "model TFLOP/s/GPU", "communication", "exposed", "bubble", "memory", "vs standard", "vs dedup+contiguous", "for Perfetto"];
  parent.append(element("div", { class: "scroll" }, element("table", { id: "runs" },
    element("thead", {}, element("tr", {}, ...names.map((name, i) => element("th", { class: i === 0 || i === 10 ? "text" : null }, name)))), body)));
}

function bars(title, note, axisTitle, rows, format, colour) {
  const names = rows[0].map((item) => item[0]).filter((name) => rows.some((row) => row.some((item) => item[0] === name && item[1] > 0)));
  if (!names.length) return;
  const parent = section(title, note);
  const value = (row, name) => (row.find((item) => item[0] === name) || [name, 0])[1];
  chart(parent, () => 110 + 34 * rows.length, () => ({
    type: "bar",
    data: {
      labels: data.runs.map((run) => run.name),
      datasets: names.map((name, i) => ({
        label: words(name), data: rows.map((row) => value(row, name)), backgroundColor: colour(name, i), borderColor: "#ffffff", borderWidth: 1,
      })),
    },
    options: {
      indexAxis: "y",
      scales: { x: { stacked: true, title: { display: true, text: axisTitle }, ticks: { callback: format } }, y: { stacked: true, grid: { display: false } } },
      plugins: { legend: { position: "bottom" }, tooltip: { callbacks: { label: (item) => `${item.dataset.label}: ${format(item.parsed.x)}` } } },
    },
  }))();
}

// The steps of a series: solid with the placement of the first step, dashed with one learnt for each.
function series() {
  const runs = data.runs.filter((run) => run.step.series.length);
  if (!runs.length) return;
  const parent = section("Series", "Time of each step as the routing drifts. Solid: with the placement that was learnt for the first step; " +
    "dashed: with one learnt for that step. All else on this page is the mean over the steps.");
  const line = (run, i, column, dash) => ({
    label: `${run.name}${dash.length ? ", placed anew" : ""}`, data: run.step.series.map((step) => step[column]),
    borderColor: at(COLOURS, i), backgroundColor: at(COLOURS, i), borderDash: dash, pointRadius: 3,
  });
  chart(parent, 320, () => ({
    type: "line",
    data: {
      labels: runs[0].step.series.map((step, i) => String(i + 1)),
      datasets: runs.flatMap((run, i) => [line(run, i, 0, []), ...(run.step.series[0][1] === null ? [] : [line(run, i, 1, [5, 4])])]),
    },
    options: {
      scales: { x: { title: { display: true, text: "step" } }, y: { title: { display: true, text: "time of the step" }, ticks: { callback: formatSeconds } } },
      plugins: { legend: { position: "bottom" }, tooltip: { callbacks: { label: (item) => `${item.dataset.label}: ${formatSeconds(item.parsed.y)}` } } },
    },
  }))();
}

function criticalPath() {
  const parent = section("Critical path", "What the end of the step waited for, back to its start. The segments add up to the step.");
  for (const run of data.runs) {
    const body = element("tbody");
    for (const [name, seconds, count] of run.step.critical_path) {
      body.append(element("tr", {}, element("th", {}, words(name)), element("td", {}, formatSeconds(seconds)),
        element("td", {}, `${(100 * seconds / run.step.time_s).toFixed(1)} %`), element("td", {}, String(count))));
    }
    parent.append(element("h3", {}, run.name), element("div", { class: "scroll" }, element("table", {},
      element("thead", {}, element("tr", {}, ...["segment", "time", "share", "times"].map((name, i) => element("th", { class: i === 0 ? "text" : null }, name)))), body)));
  }
}

// Forward passes orange, backward passes blue, both together violet; on ranks the colours of the parts.
function spanColour(name) {
  const part = PARTS[name.split(" ")[0]];  // "experts forward 3"
  if (part) return part;
  if (name.includes(" + ")) return "#cc79a7";
  return name.startsWith("forward") ? "#e69f00" : "#0072b2";
}

// Stages as they come; ranks by number, each with its kernels before its communication.
function byRank(a, b) {
  const rank = (track) => (track.startsWith("rank ") ? parseInt(track.slice(5), 10) : -1);
  return rank(a) - rank(b);
}

// The ranks that a page shows of an executed step; all do about the same.
const SHOWN_RANKS = 4;

function drawSpans(box, spans) {
  const tracks = [...new Set(spans.map((span) => span[0]))].sort(byRank);
  const end = spans.reduce((latest, span) => Math.max(latest, span[3]), 0);
  const left = 14 + 6 * Math.max(...tracks.map((track) => track.length)), width = 880 + left, row = 20, height = tracks.length * row + 40;
  const x = (s) => left + (s / end) * (width - left - 10);
  const svg = svgElement("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img" });
  tracks.forEach((track, i) => svg.append(svgElement("text", { x: left - 6, y: i * row + 14, "font-size": 11, "text-anchor": "end" }, words(track))));
  for (const [track, name, begin, stop] of spans) {
    const rect = svgElement("rect", { x: x(begin), y: tracks.indexOf(track) * row + 2, width: Math.max(0.5, x(stop) - x(begin) - 0.3), height: row - 4, fill: spanColour(name) });
    rect.append(svgElement("title", {}, `${track}: ${words(name)}, ${formatSeconds(begin)} to ${formatSeconds(stop)}`));
    svg.append(rect);
  }
  for (let tick = 0; tick <= 5; ++tick) {
    svg.append(svgElement("text", { x: x(end * tick / 5), y: height - 18, "font-size": 11, "text-anchor": tick === 5 ? "end" : "middle" }, formatSeconds(end * tick / 5)));
  }
  svg.append(svgElement("text", { x: left, y: height - 4, "font-size": 11 }, "time from the start of the step; white: nothing to compute; hover for the pass"));
  box.replaceChildren(svg);
}

function timeline() {
  const runs = data.runs.filter((run) => run.spans.length);
  if (!runs.length) return;
  const parent = section("Timeline", "When each pipeline stage (or rank) computes which micro-batch: forward orange, backward blue, both together violet; ranks by part, in the colours of the bars above, the first four of them. " +
    "The white triangles at both ends of a pipeline are its bubble.");
  const box = element("div", { id: "timeline", class: "scroll" });
  const shown = (span) => !span[0].startsWith("rank ") || parseInt(span[0].slice(5), 10) < SHOWN_RANKS;
  const draw = () => drawSpans(box, runs[Number(pick.value())].spans.filter(shown));
  const pick = choice("run", runs.map((run, i) => [String(i), run.name]), "0", () => draw());
  parent.append(element("div", { class: "controls" }, pick), box);
  draw();
}

stepTable();
bars("Where the time goes", "The rank that ends last, or the stage with most to do: what it computes counts first, then what it communicates without computing, then waits. Adds up to the step.",
  "time of the step", data.runs.map((run) => run.step.parts), formatSeconds, (name) => PARTS[name] || "#000000");
timeline();
series();
criticalPath();
bars("Memory", "Bytes per GPU on the fullest stage, by kind.", "bytes per GPU",
  data.runs.map((run) => run.step.memory_bytes.filter((item) => item[0] !== "total" && item[0] !== "available")), formatBytes, (name, i) => at(COLOURS, i));
showTable(document.getElementById("rows"), data.csv.columns, data.csv.rows);
facts("Command", data.command);
facts("Configuration", data.configuration);
facts("Provenance", JSON.stringify(data.provenance, null, 1));
document.documentElement.dataset.ready = "yes";
