"""What the notebooks share: running `coterie`, reading its files, and drawing.

As a program it makes a sweep's table small enough to commit:
  python notebooks/coterie_figures.py condense notebooks/out/scaling/sweep.csv notebooks/results/scaling.csv
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import struct
import subprocess
import tempfile
import zlib
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BUNDLED_TRACE = ROOT / "workloads" / "examples" / "small_moe.moet"
RESULTS = HERE / "results"
FIGURES = HERE / "figures"
# Recorded traces and published measurements, which are not part of the project; what needs them is skipped where the folder is not there.
DATA = Path(os.environ.get("COTERIE_DATA") or HERE / "data")

# Okabe and Ito's colours, told apart by people who confuse red and green; every series also has a
# marker and a line style of its own, for print in grey.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
RUN_STYLES = {
    "standard": dict(color=BLACK, marker="o", linestyle="-"),
    "dedup": dict(color=SKY, marker="s", linestyle="--"),
    "placed": dict(color=BLUE, marker="^", linestyle="-"),
    "balanced": dict(color=GREEN, marker="P", linestyle=":"),
    "hierarchical": dict(color=ORANGE, marker="D", linestyle="-."),
    "hierarchical-balanced": dict(color=PURPLE, marker="X", linestyle=":"),
    "two-level": dict(color=VERMILLION, marker="v", linestyle="-"),
}
SERIES_STYLES = [
    dict(color=BLUE, marker="o", linestyle="-"),
    dict(color=VERMILLION, marker="s", linestyle="--"),
    dict(color=GREEN, marker="^", linestyle="-."),
    dict(color=PURPLE, marker="D", linestyle=":"),
    dict(color=BLACK, marker="v", linestyle="-"),
    dict(color=ORANGE, marker="P", linestyle="--"),
]
RUN_LABELS = {
    "standard": "standard (a copy per expert)",
    "dedup": "dedup, contiguous (baseline)",
    "placed": "dedup, collaboration placement",
    "balanced": "dedup, load-balanced placement",
    "hierarchical": "hierarchical, contiguous",
    "hierarchical-balanced": "hierarchical, load-balanced",
    "two-level": "hierarchical, collaboration placement",
}


class ProgramError(RuntimeError):
    """`coterie` ended with an error; the message is its own sentence."""


def program() -> str:
    """The `coterie` program: $COTERIE, else a build folder's, else the PATH's."""
    if named := os.environ.get("COTERIE"):
        return named
    for preset in ("release", "no-cuda", "ci"):
        built = ROOT / "build" / preset / "bin" / "coterie"
        if built.exists():
            return str(built)
    if found := shutil.which("coterie"):
        return found
    raise FileNotFoundError("no `coterie` program: build it, or set COTERIE to its path")


def coterie(*arguments) -> str:
    """Runs the program and returns its standard output."""
    done = subprocess.run([program(), *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise ProgramError(lines[-1] if lines else f"coterie ended with exit code {done.returncode}")
    return done.stdout


def coterie_json(*arguments) -> dict:
    return json.loads(coterie(*arguments, "--json"))


def simulate(experiment: Path, overrides: dict | None = None) -> pd.DataFrame:
    """Simulates an experiment; one row per run, with the columns of results.csv."""
    with tempfile.TemporaryDirectory() as folder:
        sets = [part for key, value in (overrides or {}).items() for part in ("--set", f"{key}={value}")]
        coterie("simulate", experiment, "-o", folder, "--no-timelines", *sets)
        return one_layer(pd.read_csv(Path(folder) / "results.csv"))


def one_layer(table: pd.DataFrame) -> pd.DataFrame:
    """Times of one MoE layer under the short names of the figures: time_s, low_s, high_s. Tables of version
    0.1 have these names already; in its sweeps they are sums over the layers of a run."""
    return table.rename(columns={f"layer_{name}_s": f"{name}_s" for name in ("time", "low", "high")})


def mean_layer(results: pd.DataFrame) -> pd.DataFrame:
    """Per run, the mean over layers of a results.csv, with compute_s, exposed_s and exposed_share.

    See read_sweep for what these three mean.
    """
    table = results.copy()
    table["compute_s"] = compute_s(table)
    table = table.groupby("run", sort=False).mean(numeric_only=True).reset_index()
    table["exposed_s"] = (table["time_s"] - table["compute_s"]).clip(lower=0.0)
    table["exposed_share"] = table["exposed_s"] / table["time_s"]
    return table


# ---------------------------------------------------------------------------------- sweep tables


COMPUTE_PHASES = ["pack", "expand", "mlp", "merge", "sum"]
BINDING = ["kernels and MLP", "NVLink", "NIC", "fabric"]


def compute_columns(table: pd.DataFrame) -> list[str]:
    """The columns of the compute phases, each on its slowest rank; sweeps of version 0.1 call them PHASE_s."""
    names = [f"{phase}_slowest_rank_s" for phase in COMPUTE_PHASES]
    return [name for name in names if name in table] or [name for phase in COMPUTE_PHASES if (name := f"{phase}_s") in table]


def compute_s(table: pd.DataFrame) -> pd.Series:
    return table[compute_columns(table)].sum(axis=1)


def binding(table: pd.DataFrame) -> pd.Series:
    """What sets the time of each row: kernels and MLP where they take half of it or more, else the tier
    of the busiest link: NVLink (or PCIe), NIC (its port or what a rank can inject), or the fabric behind it."""
    kind = table["busiest_link"].fillna("").str
    tier = np.select([table["busiest_link_tier"] == "scale_up", kind.contains("network cap|nic")], ["NVLink", "NIC"], "fabric")
    compute = compute_s(table) >= 0.5 * table["time_s"]
    return pd.Series(np.where(compute, "kernels and MLP", tier), index=table.index).where(table["time_s"].notna())


def read_sweep(path: Path) -> pd.DataFrame:
    """A sweep's rows that succeeded, with derived columns.

    compute_s            kernels and expert MLP: the sum of each phase on its slowest rank
    exposed_s            time_s - compute_s: time in which the slowest chain waits for bytes. A lower
                         bound of communication, since the slowest ranks of two phases may differ.
    exposed_share        exposed_s / time_s
    """
    table = one_layer(pd.read_csv(path, comment="#"))
    if "status" in table:
        failed = table[table["status"] != "ok"]
        if len(failed):
            print(f"{path.name}: {len(failed)} failed rows left out; the first: {failed['error'].iloc[0]}")
        table = table[table["status"] == "ok"].copy()
    if compute_columns(table) and "compute_s" not in table:
        table["compute_s"] = compute_s(table)
    if "compute_s" in table:
        table["exposed_s"] = (table["time_s"] - table["compute_s"]).clip(lower=0.0)
        table["exposed_share"] = table["exposed_s"] / table["time_s"]
    return table.reset_index(drop=True)


def with_ratio(table: pd.DataFrame, axes: list[str], baseline: str = "dedup") -> pd.DataFrame:
    """Adds `speedup`: the baseline run's time at the same point over the row's."""
    base = table[table["run"] == baseline].set_index(axes)["time_s"]
    if base.index.has_duplicates:
        raise ValueError(f"several {baseline} rows at one point of {axes}: an axis is missing")
    result = table.copy()
    result["speedup"] = base.reindex(pd.MultiIndex.from_frame(table[axes])).to_numpy() / table["time_s"]
    return result


def gain(table: pd.DataFrame, axes: list[str], runs: list[str], over: list[str], across: str | None = None) -> pd.Series:
    """How much faster the best of `runs` is than the best of `over`, per point of `axes`: time ratios, with
    their geometric mean where `across` names an axis to average over (traces, layers)."""
    points = axes + ([across] if across else [])
    times = table.pivot(index=points, columns="run", values="time_s")
    ratio = times[over].min(axis=1) / times[runs].min(axis=1)
    if across is None:
        return ratio
    return np.exp(np.log(ratio).groupby(level=axes).mean())


def chain(table: pd.DataFrame, axes: list[str], runs: list[str], across: str) -> pd.DataFrame:
    """What each of `runs` adds to the one before, per point of `axes`: `relative` is the time over that of the
    first run, `factor` how many times faster it is than the run before; geometric means over `across`, and their
    range (`low` and `high` of `relative`, `factor_low` and `factor_high`)."""
    times = table.pivot(index=axes + [across], columns="run", values="time_s")[runs]
    relative = times.div(times[runs[0]], axis=0)
    factor = times.shift(1, axis=1).fillna({runs[0]: times[runs[0]]}) / times
    geometric = lambda ratios: np.exp(np.log(ratios).groupby(level=axes).mean()).stack()
    columns = {"relative": geometric(relative), "factor": geometric(factor)}
    for name, ratios in (("", relative), ("factor_", factor)):
        columns[f"{name}low"] = ratios.groupby(level=axes).min().stack()
        columns[f"{name}high"] = ratios.groupby(level=axes).max().stack()
    return pd.DataFrame(columns)


# Of a sweep's columns, those that figures use, beside the axes (set.*).
CONDENSED = ["status", "error", "run", "num_gpus", "fanout_ranks", "fanout_nodes", "rank_load_max_over_mean",
             "time_s", "low_s", "high_s", "compute_s", "binding"]


# And of a sweep over whole steps; `step_*_s` are the parts, which add up to run_time_s.
CONDENSED_STEPS = ["status", "error", "run", "num_gpus", "run_time_s", "tokens_per_s_per_gpu", "communication_s",
                   "exposed_communication_s"]


def condense(source: Path, target: Path, header: list[str], drop: tuple[str, ...] = ()) -> pd.DataFrame:
    """A sweep's table made small enough to commit: the columns of CONDENSED (of whole steps, CONDENSED_STEPS) at four digits, the head's
    lines as comments, and there what is equal in all rows. A trace's path becomes its stem."""
    table = one_layer(pd.read_csv(source))
    steps = "step_kind" in table
    columns = CONDENSED
    if steps:
        unused = ("step_time_s", "step_low_s", "step_high_s")
        columns = CONDENSED_STEPS + [name for name in table if name.startswith("step_") and name.endswith("_s")
                                     and name not in unused and table[name].abs().max() > 1e-9]
    else:
        table["compute_s"] = compute_s(table)
        table["binding"] = binding(table)
    axes = [name for name in table if name.startswith("set.") and "max_imbalance" not in name]
    if "set.trace.file" in axes:
        table["set.trace.file"] = table["set.trace.file"].map(lambda path: Path(path).stem)
    if (table["status"] == "ok").all():
        table = table.drop(columns=["status", "error"], errors="ignore")
    # Intervals are known only where the topology is calibrated.
    table = table.drop(columns=[name for name in ("low_s", "high_s") if name in table and (table[name].isna().all() or table[name].equals(table["time_s"]))])
    table = table[[name for name in axes + columns if name in table and name not in drop]]
    constant = [name for name in table if table[name].nunique(dropna=False) == 1]
    header = header + ["equal in all rows: " + ", ".join(f"{name} {table[name].iloc[0]}" for name in constant)] * bool(constant)
    table = table.drop(columns=constant)
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "w", encoding="utf-8") as out:
        out.writelines(f"# {line}\n" for line in header)
        table.to_csv(out, index=False, float_format="%.4g")
    return table


# ---------------------------------------------------------------------------------- whole steps


# What the parts of a step are summed up to in figures, with colours: computation, then what is exposed.
STEP_GROUPS = {
    "attention and dense": (["embedding", "attention", "dense_mlp"], "#4477AA"),
    "experts": (["experts", "shared_experts"], "#66AADD"),
    "router and moving rows": (["router", "permute"], "#99BBCC"),
    "optimizer": (["optimizer"], "#BBCCEE"),
    "dispatch and combine": (["notify", "dispatch", "combine"], "#EE7733"),
    "gradients and parameters": (["gradients", "parameters"], "#CC3311"),
    "other communication": (["tensor", "pipeline"], "#EE99AA"),
    "bubble": (["bubble"], "#BBBBBB"),
    "waiting": (["wait"], "#DDDDDD"),
}


def step_groups(table: pd.DataFrame) -> pd.DataFrame:
    """Seconds of each row's step by STEP_GROUPS; they add up to run_time_s."""
    return pd.DataFrame({group: table[[f"step_{part}_s" for part in parts if f"step_{part}_s" in table]].sum(axis=1)
                         for group, (parts, _) in STEP_GROUPS.items()})


def read_points(path: Path) -> pd.DataFrame:
    """The points that `coterie validate --points` wrote, each with its protocol and group, which the file names once and then leaves empty."""
    points = pd.read_csv(path)
    points[["protocol", "group"]] = points[["protocol", "group"]].ffill()
    return points


def read_timeline(path: Path) -> pd.DataFrame:
    """The spans of a timeline that `coterie simulate` wrote: process, track, name, begin_s, end_s."""
    events = json.loads(Path(path).read_text())["traceEvents"]
    processes = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    tracks = {(event["pid"], event["tid"]): event["args"]["name"] for event in events if event["name"] == "thread_name"}
    spans = [(processes[event["pid"]], tracks[event["pid"], event["tid"]], event["name"], event["ts"] * 1e-6,
              (event["ts"] + event["dur"]) * 1e-6) for event in events if event["ph"] == "X"]
    return pd.DataFrame(spans, columns=["process", "track", "name", "begin_s", "end_s"]).sort_values("begin_s", ignore_index=True)


def step_timeline(experiment: Path, overrides: dict | None = None) -> pd.DataFrame:
    """Executes the one run of a step and reads its timeline."""
    with tempfile.TemporaryDirectory() as folder:
        sets = [part for key, value in (overrides or {}).items() for part in ("--set", f"{key}={value}")]
        coterie("simulate", experiment, "-o", folder, "--step-method", "executed", *sets)
        return read_timeline(next(Path(folder).glob("timeline-*.json")))


# --------------------------------------------------------------------------------------- traces


@dataclasses.dataclass
class Trace:
    """Recorded routing: `experts` [layers, tokens, k], sequences by their first tokens."""

    model: str
    num_experts: int
    layers: list[int]
    sequence_begin: np.ndarray
    experts: np.ndarray

    def part(self, name: str) -> np.ndarray:
        """Token positions of the even- or odd-numbered sequences."""
        sequence = np.searchsorted(self.sequence_begin, np.arange(self.experts.shape[1]), side="right") - 1
        return np.flatnonzero(sequence % 2 == {"even": 0, "odd": 1}[name])


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(message: bytes):
    """The (number, value) pairs of a Protobuf message; nested messages as bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag & 7 == 0:
            value, at = _varint(message, at)
        elif tag & 7 == 2:
            size, at = _varint(message, at)
            value, at = message[at : at + size], at + size
        else:
            raise ValueError(f"wire type {tag & 7} in a .moet record")
        yield tag >> 3, value


def _packed(value) -> list[int]:
    if isinstance(value, int):
        return [value]
    numbers, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        numbers.append(number)
    return numbers


def read_trace(path: Path) -> Trace:
    """Reads a .moet file as workloads/TRACES.md describes it. Weights are left out."""
    data = Path(path).read_bytes()
    if data[:8] != b"MOETRC\x00\x01":
        raise ValueError(f"{path}: not a .moet trace")
    at, model, num_experts, topk, layers, id_bytes = 8, "", 0, 0, [], 1
    blocks, begins, complete = [], [], False
    while at < len(data):
        size, start = _varint(data, at)
        record, at = data[start : start + size], start + size + 4
        if zlib.crc32(record) != struct.unpack("<I", data[at - 4 : at])[0]:
            raise ValueError(f"{path}: the record at byte {start} is damaged")
        kind, body = next(_fields(record))
        if kind == 1:
            for number, value in _fields(body):
                if number == 1:
                    model = value.decode()
                elif number == 3:
                    num_experts = value
                elif number == 4:
                    topk = value
                elif number == 5:
                    layers += _packed(value)
                elif number == 6:
                    id_bytes = value
        elif kind == 2:
            chunk: dict[int, object] = {}
            for number, value in _fields(body):
                if number == 3:
                    begins += _packed(value)
                else:
                    chunk[number] = value
            ids = np.frombuffer(chunk[4], dtype="<u1" if id_bytes == 1 else "<u2")
            blocks.append(ids.reshape(len(layers), chunk[2], topk))
        elif kind == 3:
            raise ValueError(f"{path}: counts only, no tokens")
        else:
            complete = True
    if not complete:
        raise ValueError(f"{path}: cut short")
    return Trace(model, num_experts, layers, np.array(begins), np.concatenate(blocks, axis=1))


def co_activation(experts: np.ndarray, num_experts: int) -> np.ndarray:
    """[E, E]: tokens that chose both experts; zero on the diagonal."""
    chosen = np.zeros((len(experts), num_experts), dtype=np.float32)
    np.put_along_axis(chosen, experts.astype(np.int64), 1.0, axis=1)
    pairs = chosen.T @ chosen
    np.fill_diagonal(pairs, 0.0)
    return pairs


def rank_of(placement: dict, layer: int) -> np.ndarray:
    """[E]: the rank of each expert in a placement file's layer."""
    rows = next(row["rank_experts"] for row in placement["layers"] if row["layer"] == layer)
    ranks = np.empty(placement["num_experts"], dtype=np.int64)
    for rank, experts in enumerate(rows):
        ranks[experts] = rank
    return ranks


def fanout(experts: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """[tokens]: distinct ranks that host one of the token's experts (Occult's C_T)."""
    hosts = np.sort(ranks[experts.astype(np.int64)], axis=1)
    return 1 + (np.diff(hosts, axis=1) != 0).sum(axis=1)


def place(trace: Path, ranks: int, strategy: str, *options) -> dict:
    """Learns a placement on the even sequences and returns its file's content."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "placement.json"
        coterie("place", trace, "--ranks", ranks, "--strategy", strategy, "--no-bound", *options, "-o", target)
        return json.loads(target.read_text())


# -------------------------------------------------------------------------------------- drawing


def use_style() -> None:
    plt.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.dpi": 150,
            "savefig.bbox": "tight",
            "figure.constrained_layout.use": True,
            "font.size": 9,
            "font.family": "DejaVu Sans",
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#DDDDDD",
            "grid.linewidth": 0.6,
            "axes.axisbelow": True,
            "lines.linewidth": 1.6,
            "lines.markersize": 5,
            "legend.frameon": False,
            "legend.fontsize": 8,
            "svg.hashsalt": "coterie",
            "svg.fonttype": "none",
        }
    )


def save(figure, name: str) -> None:
    """Writes NAME.svg and NAME.png into $COTERIE_FIGURES (default: notebooks/out/figures).

    The committed figures stand in notebooks/figures; executing the notebooks does not touch them
    unless COTERIE_FIGURES=notebooks/figures says so.
    """
    folder = Path(os.environ.get("COTERIE_FIGURES") or HERE / "out" / "figures")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    figure.savefig(folder / f"{name}.png", metadata={"Software": f"matplotlib {matplotlib.__version__}"},
                   pil_kwargs={"optimize": True})


def gpu_axis(axis, sizes, label: str = "GPUs") -> None:
    axis.set_xscale("log", base=2)
    shown = sorted(set(sizes))
    axis.set_xticks(shown, [f"{size:,}" for size in shown], rotation=45, ha="right")
    axis.minorticks_off()
    axis.set_xlabel(label)


def lines(axis, table: pd.DataFrame, x: str, y: str, series: str = "run", names=None, scale: float = 1.0):
    """One line per value of `series`."""
    names = list(names or table[series].unique())
    for idx, name in enumerate(names):
        rows = table[table[series] == name].sort_values(x)
        style = RUN_STYLES.get(name, SERIES_STYLES[idx % len(SERIES_STYLES)])
        axis.plot(rows[x], rows[y] * scale, label=RUN_LABELS.get(name, str(name)), **style)
    return axis


def bands(axis, table: pd.DataFrame, x: str, y: str, names, scale: float = 1.0, line: str | None = None):
    """One line per run and, as a band, the range over everything else that varies (traces, seeds). The line
    is their mean or, with `line`, that trace: a mean would jump where only some traces were simulated."""
    for name in names:
        rows = table[table["run"] == name]
        style = RUN_STYLES[name]
        spread = rows.groupby(x)[y].agg(["min", "max", "size"])
        spread = spread[spread["size"] > 1] * scale
        axis.fill_between(spread.index, spread["min"], spread["max"], color=style["color"], alpha=0.15, linewidth=0)
        centre = (rows if line is None else rows[rows["trace.file"] == line]).groupby(x)[y].mean() * scale
        axis.plot(centre.index, centre, label=RUN_LABELS[name], **style)
    return axis


def named_map(axis, names: pd.DataFrame, colours: dict[str, str], texts: pd.DataFrame):
    """A table of categories as coloured cells with a text in each."""
    order = list(colours)
    codes = names.map(order.index).to_numpy()
    axis.imshow(codes, cmap=matplotlib.colors.ListedColormap(list(colours.values())), vmin=-0.5, vmax=len(order) - 0.5, aspect="auto")
    label_cells(axis, names)
    for row in range(codes.shape[0]):
        for column in range(codes.shape[1]):
            axis.text(column, row, texts.iloc[row, column], ha="center", va="center", fontsize=7.5,
                      color=_ink(matplotlib.colors.to_rgb(colours[order[codes[row, column]]])))


def _ink(background) -> str:
    return "white" if 0.299 * background[0] + 0.587 * background[1] + 0.114 * background[2] < 0.5 else "black"


def label_cells(axis, grid: pd.DataFrame) -> None:
    """Names rows and columns of a grid that imshow has drawn."""
    axis.set_xticks(range(grid.shape[1]), [str(name) for name in grid.columns])
    axis.set_yticks(range(grid.shape[0]), [str(name) for name in grid.index])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.tick_params(length=0)


def heat_map(axis, grid: pd.DataFrame, *, centre: float | None = None, low=None, high=None, text="{:.2f}"):
    """A table as a heat map with its numbers written in. With `centre`, blue is above, orange below; give
    `low` and `high` where several maps share a scale. `text` may also be a table of texts."""
    values = grid.to_numpy(dtype=float)
    if centre is None:
        colours, norm = "cividis", plt.Normalize(low, high)
    else:
        reach = max(abs(np.nanmax(values) - centre), abs(np.nanmin(values) - centre), 1e-9)
        low, high = low or centre - reach, high or centre + reach
        norm = matplotlib.colors.TwoSlopeNorm(centre, min(low, centre - 1e-6), max(high, centre + 1e-6))
        colours = matplotlib.colors.LinearSegmentedColormap.from_list(
            "orange_blue", ["#B35806", "#FDB863", "#F7F7F7", "#67A9CF", "#08519C"]
        )
    image = axis.imshow(values, cmap=colours, norm=norm, aspect="auto")
    label_cells(axis, grid)
    texts = grid.map(text.format) if isinstance(text, str) else text
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            axis.text(column, row, texts.iloc[row, column], ha="center", va="center", fontsize=7.5,
                      color=_ink(image.cmap(image.norm(value))))
    return image


def waterfall(axis, groups: pd.Series, scale: float = 1.0, reach: float | None = None):
    """Where a step's time goes: every group's bar begins where the one above ended; the last bar is all of it."""
    groups = groups[groups > 0.002 * groups.sum()] * scale
    total = groups.sum()
    reach = reach or total
    begin = 0.0
    for row, (group, value) in enumerate(groups.items()):
        axis.barh(row, value, left=begin, color=STEP_GROUPS[group][1], height=0.75)
        right = begin + value + 0.17 * reach < 1.08 * reach
        axis.text(begin + value + 0.01 * reach if right else begin - 0.01 * reach, row, f"{value:.3g} ({value / total:.0%})",
                  va="center", ha="left" if right else "right", fontsize=7.5)
        begin += value
        axis.plot([begin, begin], [row + 0.375, row + 0.625], color="#888888", linewidth=0.6)
    axis.barh(len(groups), total, color="#444444", height=0.75)
    axis.text(0.01 * reach, len(groups), f"{total:.3g}", va="center", color="white", fontsize=8)
    axis.set_yticks(range(len(groups) + 1), [*groups.index, "step"])
    axis.invert_yaxis()
    axis.set_xlim(0, 1.08 * reach)
    axis.grid(axis="y", visible=False)


def stacked(axis, table: pd.DataFrame, x: str, scale: float = 1.0, share: bool = False):
    """Bars of step_groups over the values of `x`; with `share`, of the whole step in percent."""
    table = table.sort_values(x)
    groups = step_groups(table)
    if share:
        groups = groups.div(groups.sum(axis=1), axis=0) * 100.0
    below = np.zeros(len(table))
    for group in groups:
        values = groups[group].to_numpy() * (1.0 if share else scale)
        axis.bar(range(len(table)), values, bottom=below, color=STEP_GROUPS[group][1], label=group, width=0.8)
        below += values
    axis.set_xticks(range(len(table)), [f"{value:,}" for value in table[x]], rotation=45, ha="right")
    axis.grid(axis="x", visible=False)
    return groups


# Parts of a rank's timeline and their colours.
SPAN_COLOURS = {"attention": "#4477AA", "dense_mlp": "#4477AA", "embedding": "#4477AA", "router": "#99BBCC", "permute": "#99BBCC",
                "experts": "#66AADD", "shared_experts": "#AADDEE", "notify": "#EE7733", "dispatch": "#EE7733", "combine": "#CC3311"}


SPAN_LABELS = {"dense_mlp": "MLP", "permute": "rows", "shared_experts": "shared"}


def joined_spans(spans: pd.DataFrame, gap: float) -> list[tuple[str, float, float]]:
    """Spans in order of time as (part, begin, end), those of the same part that are less than `gap` apart as one."""
    joined: list[tuple[str, float, float]] = []
    for span in spans.sort_values("begin_s").itertuples():
        part = span.name.split(" ")[0]
        if joined and joined[-1][0] == part and span.begin_s - joined[-1][2] < gap:
            joined[-1] = (part, joined[-1][1], max(joined[-1][2], span.end_s))
        else:
            joined.append((part, span.begin_s, span.end_s))
    return joined


def draw_timeline(axis, spans: pd.DataFrame, rows: list[tuple[str, str, str]], window: tuple[float, float], scale: float = 1e3):
    """Spans as boxes. `rows`: a label, the track it shows and the ending of the names that it takes
    (so that one track of kernels may fall into a row per micro-batch). Gaps below half a percent of the
    window are not drawn."""
    begin, end = window
    for row, (_, track, ending) in enumerate(rows):
        part = spans[(spans["track"] == track) & spans["name"].str.endswith(ending) & (spans["end_s"] > begin) & (spans["begin_s"] < end)]
        for name, left, right in joined_spans(part, 0.005 * (end - begin)):
            left, right = max(left, begin), min(right, end)
            colour = SPAN_COLOURS.get(name, "#BBBBBB")
            axis.barh(row, (right - left) * scale, left=(left - begin) * scale, height=0.8, color=colour, linewidth=0)
            label = SPAN_LABELS.get(name, name)
            if right - left > 0.0065 * len(label) * (end - begin):
                axis.text(((left + right) / 2 - begin) * scale, row, label, ha="center", va="center", fontsize=6.5,
                          color=_ink(matplotlib.colors.to_rgb(colour)), clip_on=True)
    axis.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(0, (end - begin) * scale)
    axis.grid(axis="y", visible=False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes a sweep's table small enough to commit.")
    commands = parser.add_subparsers(dest="command", required=True)
    small = commands.add_parser("condense", help="the columns that figures use, at four digits")
    small.add_argument("source", type=Path)
    small.add_argument("target", type=Path)
    small.add_argument("--note", action="append", default=[], help="a line for the table's head (repeatable)")
    small.add_argument("--drop", action="append", default=[], help="a column to leave out (repeatable)")
    arguments = parser.parse_args()
    if not arguments.source.is_file():
        parser.error(f"no table {arguments.source}")
    rows = condense(arguments.source, arguments.target, arguments.note, tuple(arguments.drop))
    print(f"{arguments.target}: {len(rows)} rows")


if __name__ == "__main__":
    main()
