"""Starts and stops SGLang's expert-distribution recorder and turns its dumps into one archive.

    # server: SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR=DIR python -m sglang.launch_server ...
    #         --expert-distribution-recorder-mode per_token --disable-shared-experts-fusion
    recorder = SglangRecorder("http://localhost:30000", "DIR")
    with recorder:
        ...                      # send the requests
    recorder.convert(num_experts=256, model_name="deepseek-ai/DeepSeek-V3").save("trace.npz")

`coterie trace import DIR/*.pt` reads the dumps too; converting here adds request ids and what is prompt
and what decoded. A dump holds forward passes of physical expert ids. Passes become requests by `rids`
where the version records them, else by position: a segment continues the one request that has come to
its position, and where several have, it stays a sequence of its own. A file that repeats another rank's
passes counts once. Radix-cached tokens are not computed and so not recorded: start the server with
--disable-radix-cache to record whole prompts. The recorder gives no router weights.
"""

from __future__ import annotations

import hashlib
import time
import urllib.request
from pathlib import Path

import numpy as np

from .trace_file import RecordError, Sequence, TraceFile

DECODE = 2  # sglang's ForwardMode.DECODE


def load_with_torch(path: Path) -> dict:
    """A dump, read without running what it holds."""
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


class SglangRecorder:
    def __init__(self, url: str, folder: str | Path, timeout: float = 600.0, load=load_with_torch):
        self.url, self.folder, self.timeout, self.load = url.rstrip("/"), Path(folder), timeout, load
        self.files: list[Path] = []

    def _post(self, what: str) -> None:
        request = urllib.request.Request(f"{self.url}/{what}_expert_distribution_record", data=b"", method="POST")
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                status = answer.status
        except OSError as error:
            raise RecordError(f"{self.url}: could not {what} the recorder: {error}") from error
        if status != 200:
            raise RecordError(f"{self.url}: found status {status} to {what} the recorder, expected 200")

    def _dumps(self) -> set[Path]:
        return set(self.folder.glob("expert_distribution_recorder_*.pt"))

    def __enter__(self) -> "SglangRecorder":
        self.before = self._dumps()
        self._post("start")
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._post("stop")
        if kind is not None:
            return
        self._post("dump")
        deadline = time.monotonic() + self.timeout
        while True:  # ranks write after the answer; wait until no file is new or grows
            new = {path: path.stat().st_size for path in self._dumps() - self.before}
            time.sleep(min(0.5, self.timeout / 4))
            if new and new == {p: p.stat().st_size for p in self._dumps() - self.before}:
                break
            if time.monotonic() > deadline:
                raise RecordError(f"{self.folder}: found no new expert_distribution_recorder_*.pt within "
                                  f"{self.timeout:.0f} s, expected the server's "
                                  "SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR")
        self.files = sorted(new)

    def convert(self, num_experts: int, model_name: str, layers: list[int] | None = None) -> TraceFile:
        """Joins the dumps of all ranks. `layers`: the MoE layers (default: those that were recorded)."""
        seen: set[bytes] = set()
        joined: list[tuple[str, int, np.ndarray]] = []
        for path in self.files:
            dump = self.load(path)
            if "records" not in dump or not all("topk_ids_of_layer" in r for r in dump["records"]):
                raise RecordError(f"{path}: found keys {sorted(dump)}, expected records of mode per_token")
            digest = hashlib.sha256()
            for record in dump["records"]:
                digest.update(np.ascontiguousarray(record["topk_ids_of_layer"]).tobytes())
                digest.update(repr(record["positions"]).encode())
            if digest.digest() in seen:
                continue
            seen.add(digest.digest())
            joined += _requests(path, dump, rank=len(seen) - 1)
        if not joined:
            raise RecordError(f"{self.folder}: found no recorded tokens")
        everything = np.concatenate([experts for _, _, experts in joined])  # [tokens, layers, 8]
        recorded = np.flatnonzero((everything >= 0).any(axis=(0, 2)))
        layers = recorded.tolist() if layers is None else list(layers)
        k = int((everything[:, layers] >= 0).any(axis=(0, 1)).sum())
        file = TraceFile(model_name, num_experts, layers)
        for name, num_prompt, experts in joined:
            file.add(Sequence(name, num_prompt, experts[:, layers, :k]))
        return file


def _requests(path: Path, dump: dict, rank: int) -> list[tuple[str, int, np.ndarray]]:
    """Requests of one dump: (name, prompt tokens, logical experts [tokens, layers, 8], -1 is padding)."""
    to_logical = dump.get("last_physical_to_logical_map")
    to_logical = None if to_logical is None else np.asarray(to_logical)
    requests: list[dict] = []
    by_name: dict[str, dict] = {}
    for number, record in enumerate(dump["records"]):
        where = f"{path}: records[{number}]"
        experts = np.asarray(record["topk_ids_of_layer"]).transpose(1, 0, 2)
        positions = list(record["positions"])
        if len(positions) != len(experts):
            raise RecordError(f"{where}: found {len(positions)} positions and {len(experts)} tokens")
        if to_logical is not None:
            if experts.max(initial=-1) >= to_logical.shape[1]:
                raise RecordError(f"{where}: found physical expert {experts.max()}, expected ids below "
                                  f"{to_logical.shape[1]}; start the server with --disable-shared-experts-fusion")
            layer = np.arange(experts.shape[1])[None, :, None]
            experts = np.where(experts >= 0, to_logical[layer, np.maximum(experts, 0)], -1)
        decode = record.get("forward_mode") == DECODE
        lengths = [1] * len(positions) if decode else list(record.get("extend_seq_lens") or [])
        if sum(lengths) > len(positions):
            raise RecordError(f"{where}: found segments of {sum(lengths)} tokens, expected at most {len(positions)}")
        names = record.get("rids")
        at = 0
        for segment, length in enumerate(lengths):
            begin, at = at, at + length
            if length == 0:
                continue
            position = int(positions[begin])
            if names is not None:
                request = by_name.get(str(names[segment]))
                name = str(names[segment])
            else:
                waiting = [r for r in requests if r["next"] == position] if position > 0 else []
                request = waiting[0] if len(waiting) == 1 else None
                name = f"rank {rank} request {len(requests)}"
            if request is None:
                request = {"name": name, "next": position, "parts": [], "prompt": 0}
                requests.append(request)
                by_name[name] = request
            if position < request["next"]:  # computed again by the scheduler: counts once
                skip = min(length, request["next"] - position)
                begin, position = begin + skip, position + skip
            if begin == at:
                continue
            request["parts"].append(experts[begin:at])
            request["next"] = position + (at - begin)
            request["prompt"] += 0 if decode else at - begin
    return [(r["name"], r["prompt"], np.concatenate(r["parts"])) for r in requests if r["parts"]]
