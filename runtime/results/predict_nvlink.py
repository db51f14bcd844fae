#!/usr/bin/env python3
"""Predicts the measured layers of a folder from a topology and tabulates signed errors.

  runtime/results/predict_nvlink.py FOLDER TRACES TOPOLOGY [--coterie PROGRAM] [--rows FILE.csv]

FOLDER    one of h200_nvlink_2, h200_nvlink_4, h100_nvlink_2, h100_nvlink_4: its reports say what was run
TRACES    folder with law.moet and intent.moet
TOPOLOGY  a calibrated topology or the probe's skeleton; nothing measured but this goes in

An error is predicted / measured - 1, per run and layer. Kernels and MLP: the slowest rank's time. `dispatch`
and `combine`: the layer's. Pairs are runs of one report, over both layers, whose times differ by more
than the two standard deviations of their samples together.
"""
import argparse
import csv
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

PHASES = ["pack", "forward", "expand", "mlp", "merge", "gather", "sum"]
RUNS = """
  - {name: standard, placement: contiguous, dispatch: standard}
  - {name: dedup, placement: contiguous, dispatch: dedup}
  - {name: load-balanced, placement: load_balanced, dispatch: dedup}
  - {name: refined, placement: collaboration_refined, dispatch: dedup}
  - {name: refined-1.2, placement: collaboration_refined, dispatch: dedup, max_imbalance: 1.2}
  - {name: refined-1.1, placement: collaboration_refined, dispatch: dedup, max_imbalance: 1.1}
  - {name: refined-1.05, placement: collaboration_refined, dispatch: dedup, max_imbalance: 1.05}
  - {name: hierarchical, placement: contiguous, dispatch: hierarchical}
  - {name: two-level, placement: collaboration_two_level, dispatch: hierarchical, max_imbalance: 1.2}
"""


def experiment(measured, folder, traces, topology):
    run = measured[0]
    ranks, hidden = run["num_ranks"], run["provenance"]["hidden"]
    intermediate = run["provenance"]["expert_intermediate"]
    return f"""schema_version: 1
topology: {{extends: {topology}, nodes: 2, gpus_per_node: {ranks // 2}, scale_up: {{nodes_per_domain: 2}}}}
model: {{extends: deepseek_v2_lite, hidden: {hidden}, expert_intermediate: {intermediate}, shared_intermediate: {intermediate}}}
trace: {{file: {traces / run["trace"]}, train: even, eval: odd}}
ranks: {ranks}
tokens_per_rank: {run["tokens_per_rank"]}
layers: [1, 13]
chunk: {4 if hidden <= 2048 else 8} MiB
payload: {{dispatch: {run["payload"]["dispatch"]}, combine: bf16}}
engine: flow
runs:{RUNS}""" + "".join(
        f"  - {{name: {run['name']}, placement: {(folder / 'placements' / run['provenance']['placement_file']).resolve()}, dispatch: dedup}}\n"
        for run in measured if "placement_file" in run["provenance"])


def align(layer):
    """Measured times count from a rank's own start. All leave the notify step together, so there the clocks
    are set; zero is the start of the rank that came last, as in a prediction. Every rank needs results of
    every other in these runs."""
    notify = next(entry for entry in layer["phases"] if entry["phase"] == "notify")
    leads = [end - min(notify["end_s"]) for end in notify["end_s"]]
    for entry in layer["phases"]:
        for side in ("begin_s", "end_s"):
            entry[side] = [time - lead for time, lead in zip(entry[side], leads)]
    ends = {entry["phase"]: entry["end_s"] for entry in layer["phases"]}
    layer["time_s"] = max(map(max, ends.values()))
    layer["combine_s"] = max(end - max(ends["merge"]) for end in ends["combine"])


def slowest(layer, phase):
    for entry in layer["phases"]:
        if entry["phase"] == phase:
            return max(e - b for b, e in zip(entry["begin_s"], entry["end_s"]))
    return None


def times(layer):
    out = {phase: slowest(layer, phase) for phase in PHASES}
    out["dispatch"], out["combine"] = layer["dispatch_s"], layer["combine_s"]
    out["layer"] = layer["time_s"]
    return {name: value for name, value in out.items() if value}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("traces", type=pathlib.Path)
    parser.add_argument("topology", type=pathlib.Path)
    parser.add_argument("--coterie", default="coterie")
    parser.add_argument("--rows", type=pathlib.Path)
    arguments = parser.parse_args()
    rows, right, ordered = [], 0, 0
    for path in sorted((arguments.folder / "reports").glob("*.json")):
        measured = json.loads(path.read_text())["runs"]
        with tempfile.TemporaryDirectory() as work:
            file = pathlib.Path(work) / "experiment.yaml"
            file.write_text(experiment(measured, arguments.folder, arguments.traces.resolve(), arguments.topology.resolve()))
            done = subprocess.run([arguments.coterie, "simulate", file, "-o", f"{work}/out"],
                                  capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{path.name}: {done.stderr}")
            predicted = {run["name"]: run for run in
                         json.loads(pathlib.Path(f"{work}/out/results.json").read_text())["runs"]}
        totals = []
        for run in measured:
            found = predicted[run["name"]]
            spread = 0.0
            for of_run, of_prediction in zip(run["layers"], found["layers"]):
                align(of_run)
                spread += statistics.stdev(of_run["samples_s"]) ** 2
                if of_run["copies"] != of_prediction["copies"]:
                    sys.exit(f"{path.name}, {run['name']}: not the same plan")
                guess = times(of_prediction)
                for item, value in times(of_run).items():
                    if item in guess:
                        rows.append([path.stem, run["name"], of_run["layer"], item, value, guess[item],
                                     guess[item] / value - 1])
            measured_s = sum(of_run["time_s"] for of_run in run["layers"])
            totals.append((measured_s, spread**0.5, found["time_s"]))
        for i, a in enumerate(totals):
            for b in totals[:i]:
                if abs(a[0] - b[0]) > 2 * (a[1] + b[1]):
                    ordered += 1
                    right += (a[0] < b[0]) == (a[2] < b[2])
    if arguments.rows:
        with arguments.rows.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["report", "run", "layer", "item", "measured_s", "predicted_s", "error"])
            writer.writerows(row[:4] + [f"{row[4]:.5g}", f"{row[5]:.5g}", f"{row[6]:.4f}"] for row in rows)
    print("| item | points | median error | median absolute | lowest | highest |\n|---|---|---|---|---|---|")
    for item in ["layer", "dispatch", "combine", *PHASES]:
        for least, label in ((0.0, item), (20e-6, f"{item} of at least 20 us")):
            errors = [row[6] for row in rows if row[3] == item and row[4] >= least]
            if not errors or (least and item in ("layer", "mlp")):
                continue
            print(f"| {label} | {len(errors)} | {statistics.median(errors):+.1%} | "
                  f"{statistics.median(map(abs, errors)):.1%} | {min(errors):+.1%} | {max(errors):+.1%} |")
    print(f"\nOrder: {right} of {ordered} pairs right.")
    print("\n| report | layer | dispatch | combine | mlp | runs furthest off |\n|---|---|---|---|---|---|")
    for report in dict.fromkeys(row[0] for row in rows):
        mine = [row for row in rows if row[0] == report]
        cells = []
        for item in ("layer", "dispatch", "combine", "mlp"):
            errors = [row[6] for row in mine if row[3] == item]
            cells.append(f"{min(errors):+.0%} to {max(errors):+.0%}")
        worst = max((row for row in mine if row[3] == "layer"), key=lambda row: abs(row[6]))
        print(f"| {report.removesuffix('-start1')} | {' | '.join(cells)} | {worst[1]}, layer {worst[2]}: {worst[6]:+.1%} |")


if __name__ == "__main__":
    main()
