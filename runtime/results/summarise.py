#!/usr/bin/env python3
"""Condenses and tabulates what runtime/run_on_gpu_machine.sh measured.

  summarise.py condense RUNS OUT        RUNS/NAME/results.json -> OUT/NAME.json, compact: times to
                                        10 ns, without the temporary paths of the machine
  summarise.py table REPORTS [PREDICTED]
                                        medians over the starts of REPORTS/TRACE-epN[-hH]-tT-startI.json,
                                        beside PREDICTED/TRACE-epN[-hH]-tT/results.json, as Markdown
  summarise.py errors POINTS            errors of the layers over NVLink per machine, item and measurement, from
                                        the points that `coterie validate --points POINTS` wrote, as Markdown
"""

import csv
import json
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path


def rounded(value):
    if isinstance(value, float):
        return round(value, 8) if abs(value) < 100 else round(value, 3)
    if isinstance(value, list):
        return [rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, str):
        return re.sub(r"/\S*/", "", value) if "/tmp" in value else value
    return value


def condense(runs, out):
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(runs.glob("*/results.json")):
        document = rounded(json.loads(path.read_text()))
        text = json.dumps(document, separators=(",", ":"))
        (out / f"{path.parent.name}.json").write_text(text + "\n")


def phase_s(run, names):
    """Sum over the layers of the slowest rank's time in these phases."""
    return sum(
        statistics.median(phase["samples_s"]) if phase.get("samples_s") else phase["slowest_s"]
        for layer in run["layers"]
        for phase in layer["phases"]
        if phase["phase"] in names
    )


def remote_bytes(run):
    return sum(g["bytes"] for layer in run["layers"] for g in layer["groups"] if g["tier"] != "local")


def worst(run, key):
    return max(layer.get(key, 0.0) for layer in run["provenance"]["correctness"]["layers"])


def table(reports, predicted):
    starts = defaultdict(list)
    for path in sorted(reports.glob("*.json")):
        trace, ranks, hidden, tokens = re.fullmatch(
            r"(\w+)-ep(\d+)(?:-h(\d+))?-t(\d+)-start\d+", path.stem).groups(default="2048")
        starts[trace, int(ranks), int(hidden), int(tokens)].append(json.loads(path.read_text())["runs"])
    for (trace, ranks, hidden, tokens), documents in sorted(starts.items()):
        print(f"\n### {trace}, {ranks} ranks, hidden {hidden}, {tokens} tokens per rank"
              f" ({len(documents)} starts)\n")
        print("| run | measured ms | starts ms | vs standard | vs dedup | dispatch ms | combine ms |"
              " remote MB | error | vs standard+contiguous | predicted ms | off |")
        print("|---|---|---|---|---|---|---|---|---|---|---|---|")
        forecast = {}
        if predicted:
            path = predicted / f"{trace}-ep{ranks}-h{hidden}-t{tokens}".replace("-h2048", "") / "results.json"
            forecast = {run["name"]: run for run in json.loads(path.read_text())["runs"]}
        names = [run["name"] for run in documents[0]]
        by_name = {name: [next(r for r in d if r["name"] == name) for d in documents] for name in names}
        middle = {n: statistics.median(r["time_s"] for r in runs) for n, runs in by_name.items()}
        for name, runs in by_name.items():
            times = [run["time_s"] * 1e3 for run in runs]
            dispatch = statistics.median(phase_s(r, ("dispatch", "forward")) for r in runs) * 1e3
            combine = statistics.median(phase_s(r, ("gather", "combine")) for r in runs) * 1e3
            cells = [
                name, f"{middle[name] * 1e3:.2f}", f"{min(times):.2f} to {max(times):.2f}",
                f"{middle['standard'] / middle[name]:.2f}x", f"{middle['dedup'] / middle[name]:.2f}x",
                f"{dispatch:.2f}", f"{combine:.2f}", f"{remote_bytes(runs[0]) * 1e-6:.1f}",
                f"{max(worst(r, 'reference_error') for r in runs):.1e}",
                f"{max(worst(r, 'standard_contiguous_error') for r in runs):.1e}",
            ]
            if name in forecast:
                time_ms = forecast[name]["time_s"] * 1e3
                cells += [f"{time_ms:.2f}", f"{100 * (time_ms / (middle[name] * 1e3) - 1):+.0f}%"]
            else:
                cells += ["-", "-"]
            print("| " + " | ".join(cells) + " |")


OVER_NVLINK = "Our runs over NVLink: "


def percent(errors):
    return f"{100 * min(errors):+.0f}% to {100 * max(errors):+.0f}%"


def errors(points):
    by_item, by_measurement = defaultdict(list), defaultdict(lambda: defaultdict(list))
    with open(points, newline="") as file:
        above = {}
        for row in csv.DictReader(file):
            # A name that stands in the line above is left out.
            above = {column: row[column] or above[column] for column in ("protocol", "group")}
            row.update(above)
            if not row["protocol"].startswith(OVER_NVLINK):
                continue
            item = row["protocol"].removeprefix(OVER_NVLINK)
            machine, _, kernel = row["group"].partition(", ")
            error = float(row["error"])
            by_item[item.replace("kernels", kernel) if kernel else item, machine].append(error)
            if not kernel:
                measurement, run = row["point"].split(", ", 1)
                by_measurement[machine, measurement][item].append((error, run))
    machines = sorted({machine for _, machine in by_item}, key=lambda name: (name.split()[0][-1], name))
    print("| item | " + " | ".join(machines) + " |\n|---|" + "---|" * len(machines))
    for item in dict.fromkeys(item for item, _ in by_item):
        cells = []
        for machine in machines:
            found = by_item.get((item, machine))
            cells.append(f"{100 * statistics.median(map(abs, found)):.1f}% ({percent(found)})" if found else "none")
        print("| " + " | ".join([item, *cells]) + " |")
    items = [item for item in dict.fromkeys(item for item, _ in by_item) if any(item in m for m in by_measurement.values())]
    print("\n| machine | measurement | " + " | ".join(items) + " | layer furthest off |")
    print("|---|---|" + "---|" * (len(items) + 1))
    for (machine, measurement), found in sorted(by_measurement.items(), key=lambda entry: (machines.index(entry[0][0]), entry[0][1])):
        cells = [percent([error for error, _ in found[item]]) if found[item] else "none" for item in items]
        error, run = max(found["whole layer"], key=lambda entry: abs(entry[0]))
        print("| " + " | ".join([machine, measurement, *cells, f"{run}: {100 * error:+.1f}%"]) + " |")


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "condense":
        condense(Path(sys.argv[2]), Path(sys.argv[3]))
    elif len(sys.argv) in (3, 4) and sys.argv[1] == "table":
        table(Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) == 4 else None)
    elif len(sys.argv) == 3 and sys.argv[1] == "errors":
        errors(Path(sys.argv[2]))
    else:
        sys.exit(__doc__)
