"""The archive that `coterie trace import` reads, checked before it is written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np


class RecordError(Exception):
    """What was recorded is not a trace; says where, what was found and what was expected."""


@dataclass
class Sequence:
    """One request: prompt first, then what was decoded."""

    request_id: str
    num_prompt_tokens: int
    experts: np.ndarray  # whole numbers [tokens, layers, k], best first
    weights: np.ndarray | None = None  # float [tokens, layers, k], as the model uses them


class TraceFile:
    """Collects sequences and writes them as one archive.

    Members: routed_experts int32 [tokens, layers, k], topk_weights float32 of the same shape (left out
    where an engine does not give weights), seq_len [sequences], layers [layers], num_experts, and for
    whoever reads it with NumPy request_id [sequences], prompt_len [sequences], model_name.
    """

    def __init__(self, model_name: str, num_experts: int, layers: list[int]):
        self.model_name, self.num_experts, self.layers = model_name, int(num_experts), list(layers)
        self.sequences: list[Sequence] = []
        if self.num_experts < 1:
            raise RecordError(f"{model_name}: found {num_experts} experts, expected 1 or more")
        if not self.layers or sorted(set(self.layers)) != self.layers:
            raise RecordError(f"{model_name}: found layers {self.layers}, expected ascending numbers")

    def add(self, sequence: Sequence) -> None:
        """Checks shapes, ids and weights. A sequence of no tokens is refused."""
        where = f"request {sequence.request_id}"
        experts = np.asarray(sequence.experts)
        if not np.issubdtype(experts.dtype, np.integer):
            raise RecordError(f"{where}: found experts of type {experts.dtype}, expected whole numbers")
        if experts.ndim != 3 or 0 in experts.shape or experts.shape[1] != len(self.layers):
            raise RecordError(f"{where}: found experts of shape {list(experts.shape)}, "
                              f"expected [tokens, {len(self.layers)} layers, k]")
        if self.sequences and experts.shape[2] != self.sequences[0].experts.shape[2]:
            raise RecordError(f"{where}: found top-{experts.shape[2]}, expected "
                              f"top-{self.sequences[0].experts.shape[2]} as in the sequences before")
        outside = (experts < 0) | (experts >= self.num_experts)
        if outside.any():
            token, layer, _ = np.argwhere(outside)[0]
            raise RecordError(f"{where}: token {token}, layer {self.layers[layer]}: found expert "
                              f"{experts[outside][0]}, expected ids below {self.num_experts}")
        ordered = np.sort(experts, axis=2)
        twice = (ordered[:, :, 1:] == ordered[:, :, :-1]).any(axis=2)
        if twice.any():
            token, layer = np.argwhere(twice)[0]
            raise RecordError(f"{where}: token {token}, layer {self.layers[layer]}: found experts "
                              f"{experts[token, layer].tolist()}, expected distinct ones")
        if not 0 <= sequence.num_prompt_tokens <= len(experts):
            raise RecordError(f"{where}: found {sequence.num_prompt_tokens} prompt tokens of "
                              f"{len(experts)} in all")
        weights = sequence.weights
        if self.sequences and (weights is None) != (self.sequences[0].weights is None):
            raise RecordError(f"{where}: found {'no ' if weights is None else ''}router weights, "
                              "unlike in the sequences before")
        if weights is not None:
            weights = np.asarray(weights, dtype=np.float32)
            if weights.shape != experts.shape:
                raise RecordError(f"{where}: found weights of shape {list(weights.shape)}, expected "
                                  f"{list(experts.shape)}")
            if not np.isfinite(weights).all() or (weights < 0).any():
                raise RecordError(f"{where}: found a weight that is negative or not a number")
        self.sequences.append(Sequence(sequence.request_id, int(sequence.num_prompt_tokens),
                                       experts.astype(np.int32), weights))

    def save(self, path: str | os.PathLike) -> Path:
        """Writes the archive beside its name first, so that no half of one is left behind."""
        if not self.sequences:
            raise RecordError(f"{path}: found no sequences to write")
        path = Path(path)
        members = {
            "routed_experts": np.concatenate([s.experts for s in self.sequences]),
            "seq_len": np.array([len(s.experts) for s in self.sequences], dtype=np.int32),
            "layers": np.array(self.layers, dtype=np.int32),
            "num_experts": np.int32(self.num_experts),
            "request_id": np.array([s.request_id for s in self.sequences]),
            "prompt_len": np.array([s.num_prompt_tokens for s in self.sequences], dtype=np.int32),
            "model_name": np.array(self.model_name),
        }
        if self.sequences[0].weights is not None:
            members["topk_weights"] = np.concatenate([s.weights for s in self.sequences])
        unfinished = path.with_name(path.name + ".unfinished")
        with open(unfinished, "wb") as file:
            np.savez_compressed(file, **members)
        unfinished.replace(path)
        return path


def moe_layers(config) -> list[int]:
    """Numbers of the MoE layers, from a model's configuration in Hugging Face's form (also what vLLM
    and SGLang hold): first_k_dense_replace, moe_layer_freq, mlp_only_layers, decoder_sparse_step."""
    def value(name, default):
        found = getattr(config, name, None)
        return default if found is None else found

    number = value("num_hidden_layers", 0)
    frequency = value("moe_layer_freq", 1)
    if isinstance(frequency, (list, tuple)):
        layers = [layer for layer, is_moe in enumerate(frequency) if is_moe]
    else:
        layers = [layer for layer in range(number) if layer % frequency == 0]
    step, dense = value("decoder_sparse_step", 1), set(value("mlp_only_layers", ()))
    return [layer for layer in layers if layer >= value("first_k_dense_replace", 0)
            and (layer + 1) % step == 0 and layer not in dense]


def expert_count(config) -> int:
    """Routed experts per layer, under the names that configurations use."""
    for name in ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts"):
        found = getattr(config, name, None)
        if isinstance(found, int) and found > 0:
            return found
    raise RecordError("the model's configuration: found no number of experts, expected n_routed_experts, "
                      "num_local_experts, num_experts or moe_num_experts")
