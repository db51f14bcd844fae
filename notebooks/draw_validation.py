"""Draws the figures of VALIDATION.md from the points that `coterie validate --points` wrote.

  COTERIE_FIGURES=notebooks/figures .venv/bin/python notebooks/draw_validation.py
"""

import re
import statistics

import matplotlib.pyplot as plt
import matplotlib.ticker as ticker

import coterie_figures as cf

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def sections():
    points = cf.read_points(cf.RESULTS / "validation.csv").rename(columns={"point": "name"})
    return {protocol: {"points": part.to_dict("records")} for protocol, part in points.groupby("protocol", sort=False)}


def draw_alltoall(section):
    """One panel per machine: measured all-to-alls and what was predicted for each from the other half of the sizes."""
    machines = sorted({point["group"] for point in section["points"]})
    columns = 4
    figure, axes = plt.subplots(-(-len(machines) // columns), columns, figsize=(12.4, 5.6), sharex=True, squeeze=False)
    for axis in axes.flat[len(machines):]:
        axis.remove()
    for axis, machine in zip(axes.flat, machines):
        counts = {}
        for point in section["points"]:
            if point["group"] != machine:
                continue
            gpus, size, unit = re.fullmatch(r"(\d+) GPUs, ([\d.]+) (\w+)", point["name"]).groups()
            counts.setdefault(int(gpus), []).append((float(size) * UNITS[unit], point["measured_s"] * 1e6, point["predicted_s"] * 1e6))
        for style, (gpus, rows) in zip(cf.SERIES_STYLES, sorted(counts.items())):
            sizes, measured, predicted = zip(*sorted(rows))
            axis.plot(sizes, measured, color=style["color"], marker=style["marker"], linestyle="", label=f"{gpus} GPUs, measured")
            axis.plot(sizes, predicted, color=style["color"], linestyle=style["linestyle"], label=f"{gpus} GPUs, predicted")
        error = statistics.median(abs(point["error"]) for point in section["points"] if point["group"] == machine)
        axis.set(xscale="log", yscale="log", title=f"{machine}: median error {100 * error:.1f} %")
        axis.legend(fontsize=7)
    for axis in axes.flat[max(0, len(machines) - columns):len(machines)]:
        axis.set_xlabel("bytes per rank")
        axis.tick_params(labelbottom=True)
    for axis in axes[:, 0]:
        axis.set_ylabel("all-to-all (us)")
    cf.save(figure, "validation_alltoall")


def draw_scatter(by_part, name, size, measured):
    """Predicted against measured, one panel per section, one marker per group; `measured` labels the horizontal axis."""
    figure, axes = plt.subplots(1, len(by_part), figsize=size)
    for axis, (part, section) in zip(axes, by_part.items()):
        ranks = sorted({point["group"] for point in section["points"]})
        times = [point[key] * 1e3 for point in section["points"] for key in ("measured_s", "predicted_s")]
        ends = [min(times) * 0.8, max(times) * 1.25]
        axis.plot(ends, ends, color=cf.BLACK, linewidth=0.9)
        axis.fill_between(ends, [0.9 * e for e in ends], [1.1 * e for e in ends], color="#999999", alpha=0.25, linewidth=0, label="within 10 %")
        for style, group in zip(cf.SERIES_STYLES, ranks):
            points = [point for point in section["points"] if point["group"] == group]
            axis.plot([p["measured_s"] * 1e3 for p in points], [p["predicted_s"] * 1e3 for p in points], color=style["color"], marker=style["marker"],
                      markersize=4, linestyle="", label=group, rasterized=len(section["points"]) > 400)  # thousands of markers make a large SVG
        error = statistics.median(abs(point["error"]) for point in section["points"])
        axis.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel=measured, title=f"{part}: median error {100 * error:.1f} %")
        for line in (axis.xaxis, axis.yaxis):
            decades = ends[1] / ends[0] < 300  # few: label within them, too
            line.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if decades else (1,), numticks=12))
            line.set_minor_formatter(ticker.NullFormatter())
            line.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        if axis is axes[0] or ranks != shown:
            axis.legend(fontsize=7)
        shown = ranks
    axes[0].set_ylabel("predicted (ms)")
    cf.save(figure, name)


# The runs of runtime/results/h200_direct_2gpu and h100_direct_2gpu: their style and what the legend calls them.
DIRECT_RUNS = {
    "standard-contiguous-direct": ("standard", "standard, contiguous"),
    "dedup-contiguous-direct": ("dedup", "dedup, contiguous"),
    "dedup-lb-direct": ("balanced", "dedup, load-balanced"),
    "dedup-collab-direct": ("placed", "dedup, collaboration"),
    "dedup-aware-direct": ("hierarchical-balanced", "dedup, time-aware"),
    "hierarchical-contiguous-direct": ("hierarchical", "hierarchical, contiguous"),
    "hierarchical-two-direct": ("two-level", "hierarchical, two-level"),
}


def direct_points(section, machine):
    """A machine's points by run: (case, ranks, measured and predicted seconds)."""
    runs = {run: [] for run in DIRECT_RUNS}
    for point in section["points"]:
        case, run, _ = point["name"].split(", ")
        group = re.fullmatch(r"(\d+) ranks on (.*), hidden \d+", point["group"])
        ranks = int(group[1])
        if group[2] == machine and run in runs:
            runs[run].append(((ranks, case), ranks, point["measured_s"], point["predicted_s"]))
    return runs


def draw_direct(layers, dispatches):
    """Two tiers, a row per machine: times of dispatch and layer, and a layer over that of de-duplicated contiguous experts; open: two ranks per
    GPU, filled: four."""
    machines = sorted({re.search(r" on (.*), hidden", point["group"])[1] for point in layers["points"]}, reverse=True)
    figure, rows = plt.subplots(len(machines), 3, figsize=(11.6, 3.2 * len(machines)), squeeze=False)
    for axes, machine in zip(rows, machines):
        draw_direct_machine(axes, machine, direct_points(layers, machine), direct_points(dispatches, machine))
    rows[0][1].plot([], [], color="0.4", marker="o", markerfacecolor="none", markersize=5, linestyle="", label="open: 2 ranks per GPU, filled: 4")
    rows[0][1].legend(fontsize=6, loc="lower right", labelspacing=0.3)
    cf.save(figure, "validation_direct")


def draw_direct_machine(axes, machine, layers, dispatches):
    baseline = {case: times for case, _, *times in layers["dedup-contiguous-direct"]}
    panels = {
        "dispatch (ms)": {run: [(n, 1e3 * a, 1e3 * b) for _, n, a, b in points] for run, points in dispatches.items()},
        "whole layer (ms)": {run: [(n, 1e3 * a, 1e3 * b) for _, n, a, b in points] for run, points in layers.items()},
        "layer over that of dedup, contiguous": {
            run: [(n, a / baseline[case][0], b / baseline[case][1]) for case, n, a, b in points]
            for run, points in layers.items() if run != "dedup-contiguous-direct"},
    }
    for axis, (title, runs) in zip(axes, panels.items()):
        every = [value for points in runs.values() for _, *values in points for value in values]
        ratio = title.startswith("layer over")
        ends = [min(every) * (0.98 if ratio else 0.8), max(every) * (1.02 if ratio else 1.25)]
        near = 0.03 if ratio else 0.1
        axis.plot(ends, ends, color=cf.BLACK, linewidth=0.9)
        axis.fill_between(ends, [(1 - near) * e for e in ends], [(1 + near) * e for e in ends], color="#999999", alpha=0.25, linewidth=0,
                          label=f"within {100 * near:.0f} %")
        for run, points in runs.items():
            style, label = DIRECT_RUNS[run]
            look = cf.RUN_STYLES[style]
            for ranks, face in ((4, "none"), (8, look["color"])):
                of_ranks = [(a, b) for n, a, b in points if n == ranks]
                if of_ranks:
                    axis.plot(*zip(*of_ranks), color=look["color"], marker=look["marker"], markerfacecolor=face, markersize=5, linestyle="",
                              label=label if ranks == 8 else None)
        axis.set(xlim=ends, ylim=ends, title=f"{machine}: {title}", xlabel=f"measured (band: within {100 * near:.0f} %)")
        if not ratio:
            axis.set(xscale="log", yscale="log")
            for line in (axis.xaxis, axis.yaxis):
                line.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=12))
                line.set_minor_formatter(ticker.NullFormatter())
                line.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes[0].set_ylabel("predicted")


# The runs of runtime/results/h200_nvlink_N, as draw_gains calls them.
GAIN_RUNS = {"standard": "stan-\ndard", "load-balanced": "bal-\nanced", "refined": "collabo-\nration", "refined-1.05": "... cap\n1.05",
             "time-aware": "time-\naware", "hierarchical": "hier-\narchical"}
GAIN_CASES = {"law-h2048-t4096-fp8": "hidden 2048", "law-h7168-t4096-fp8": "hidden 7168"}


def draw_gains(by_part):
    """Measured and predicted time of each run over that of de-duplication with contiguous experts, per phase, on 2 and 4 GPUs."""
    figure, axes = plt.subplots(2, len(by_part), figsize=(12.4, 5.4), sharex=True, sharey="col", squeeze=False)
    for column, (part, section) in enumerate(by_part.items()):
        for row, machine in enumerate(("h200_nvlink_2", "h200_nvlink_4")):
            axis = axes[row, column]
            axis.axhline(1.0, color=cf.BLACK, linewidth=0.9)
            for offset, style, (case, label) in zip((-0.17, 0.17), cf.SERIES_STYLES, GAIN_CASES.items()):
                times = {}
                for point in section["points"]:
                    name, run, _ = point["name"].split(", ")
                    if point["group"] == machine and name == case:  # two layers
                        total = times.setdefault(run, [0.0, 0.0])
                        total[0] += point["measured_s"]
                        total[1] += point["predicted_s"]
                for is_measured, key in ((True, 0), (False, 1)):
                    shown = [(x, times[run][key] / times["dedup"][key]) for x, run in enumerate(GAIN_RUNS) if run in times]
                    axis.plot([x + offset + (0.0 if is_measured else 0.11) for x, _ in shown], [y for _, y in shown], color=style["color"],
                              marker=style["marker"], markersize=5, markerfacecolor=style["color"] if is_measured else "none", linestyle="",
                              label=f"{label}, {'measured' if is_measured else 'predicted'}")
            axis.set_yscale("log")
            fine = part in ("expert MLP", "whole layer")
            axis.yaxis.set_major_locator(ticker.FixedLocator([0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2, 1.25] if fine else [0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 2.5]))
            axis.yaxis.set_minor_locator(ticker.NullLocator())
            axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_xticks(range(len(GAIN_RUNS)), list(GAIN_RUNS.values()), fontsize=7)
            if row == 0:
                axis.set_title(part)
            if column == 0:
                axis.set_ylabel(f"{machine[-1]} H200:\ntime over dedup, contiguous")
    axes[0, 0].legend(fontsize=7)
    cf.save(figure, "validation_gains")


if __name__ == "__main__":
    cf.use_style()
    found = sections()
    sizes = [section["points"] for title, section in found.items() if title.startswith("All-to-all") and "size left out" in title]
    draw_alltoall({"points": sum(sizes, [])})
    draw_scatter({part: found[f"Our runs on a shared H200: {part}"] for part in ("dispatch", "combine", "whole layer")},
                 "validation_layers", (9.6, 3.5), "measured, two layers (ms)")
    draw_scatter({part: found[f"Our runs over NVLink: {title}"] for part, title in (
                      ("dispatch", "dispatch of at least 20 us"), ("combine", "combine of at least 20 us"), ("expert MLP", "expert MLP"),
                      ("whole layer", "whole layer"))},
                 "validation_nvlink", (12.4, 3.5), "measured, one layer (ms)")
    nvlink = "Our runs over NVLink: "
    draw_gains({"dispatch": found[nvlink + "dispatch of at least 20 us"], "combine": found[nvlink + "combine of at least 20 us"],
                "expert MLP": found[nvlink + "expert MLP"], "whole layer": found[nvlink + "whole layer"]})
    draw_scatter({"expert MLP": found["Expert MLP (H200, BF16), every other batch size left out"],
                  "DeepEP kernels": found["DeepEP normal kernels, one node, from 64 tokens"]},
                 "validation_kernels", (7.6, 3.7), "measured (ms)")
    direct = "Our runs of the transport direct on two tiers: "
    draw_direct(found[direct + "whole layer"], found[direct + "dispatch of at least 20 us"])
