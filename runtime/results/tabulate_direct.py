#!/usr/bin/env python3
"""Tables of the reports of the transport `direct`, as Markdown.

  tabulate_direct.py REPORTS            medians over the starts of REPORTS/NAME-startI.json
  tabulate_direct.py --bench FILE       the table of a bench-direct file
"""

import json
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path


def phase_us(run, names):
    """Over the layers, the time from the first begin to the last end of these phases on each rank; the slowest rank's."""
    total = 0.0
    for layer in run["layers"]:
        spans = [phase for phase in layer["phases"] if phase["phase"] in names]
        if not spans:
            continue
        ranks = range(len(spans[0]["begin_s"]))
        total += max(max(span["end_s"][r] for span in spans) - min(span["begin_s"][r] for span in spans)
                     for r in ranks)
    return 1e6 * total


def reports(folder):
    cases = defaultdict(list)
    for path in sorted(Path(folder).glob("*-start*.json")):
        name = re.sub(r"-start\d+$", "", path.stem)
        cases[name].append(json.loads(path.read_text())["runs"])
    for name, starts in sorted(cases.items()):
        print(f"\n### {name} ({len(starts)} starts)\n")
        print("| run | layer us | starts us | dispatch (and forward) us | (gather and) combine us | vs the first run |")
        print("|---|---|---|---|---|---|")
        first = None
        names = list(dict.fromkeys(run["name"] for start in starts for run in start))
        for name_of_run in names:
            runs = [run for start in starts for run in start
                    if run["name"] == name_of_run and not run.get("failure")]
            if not runs:
                print(f"| {name_of_run} | failed | | | | |")
                continue
            run = runs[0]
            times = [1e6 * sum(layer["time_s"] for layer in one["layers"]) for one in runs]
            median = statistics.median(times)
            first = first or median
            out = statistics.median(phase_us(one, ("dispatch", "forward")) for one in runs)
            back = statistics.median(phase_us(one, ("gather", "combine", "sum")) for one in runs)
            print(f"| {run['name']} | {median:.0f} | {min(times):.0f} to {max(times):.0f} | {out:.0f} | {back:.0f} "
                  f"| {first / median:.2f}x |")


def bench(path):
    document = json.loads(Path(path).read_text())
    spans = ("index", "dispatch", "expand", "combine", "wire", "memory")
    print("| hidden | tokens | payload | multiprocessors | " + " | ".join(f"{span} us" for span in spans) + " |")
    print("|---" * (4 + len(spans)) + "|")
    for entry in document["entries"]:
        cells = [entry["hidden"], entry["tokens_per_rank"], entry["payload"], entry["sms"]]
        for span in spans:
            times = entry[span]
            cells.append(f"{times['median_us']:.1f} ({times['p10_us']:.1f} to {times['p90_us']:.1f})")
        print("| " + " | ".join(str(cell) for cell in cells) + " |")


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--bench":
        bench(sys.argv[2])
    elif len(sys.argv) == 2:
        reports(sys.argv[1])
    else:
        sys.exit(__doc__)
