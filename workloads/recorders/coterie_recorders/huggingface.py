"""Records Hugging Face MoE models through hooks; nothing of the model is changed.

    recorder = HuggingFaceRecorder(model)
    with recorder.batch(["request 1", "request 2"]):
        model.generate(**tokenizer(texts, return_tensors="pt", padding=True), max_new_tokens=64)
    recorder.save("trace.npz")

The choice is the one the model makes: a router's own experts and weights are read where it returns
them (transformers 5; DeepSeek-V3 and gpt-oss before it too). Where the router is a plain Linear layer
(transformers 4), softmax, top-k and the block's norm_topk_prob are done again, for the blocks that
are known to choose so; others are refused by name. The first pass of a batch is the prompt, later
ones are decoded. Padding, and what a batch computes for a request behind its end token, is left out.
"""

from __future__ import annotations

import contextlib
import re

import numpy as np

from .trace_file import RecordError, Sequence, TraceFile

ROUTER = re.compile(r"(Top[kK]|TokenChoice)?(Router|Gate)$")
# Blocks of transformers 4 whose Linear `gate` is followed by softmax and top-k; whether the weights
# are divided by their sum (None: the block's norm_topk_prob says it).
LINEAR_BLOCKS = {"MixtralSparseMoeBlock": True, "Qwen2MoeSparseMoeBlock": None,
                 "Qwen3MoeSparseMoeBlock": None, "OlmoeSparseMoeBlock": None}


def _array(tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy() if tensor.is_floating_point() else tensor.detach().cpu().numpy()


def _layer_number(name: str) -> int:
    found = re.search(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)(?:\.|$)", name)
    if found is None:
        raise RecordError(f"router {name}: found no layer number in its name, expected ...layers.N...")
    return int(found.group(1))


def find_routers(model) -> dict[int, tuple[str, object, object]]:
    """Router by layer number: (name, module, the block around it). By kind: a module whose class is
    called ...Router or ...Gate inside a module with `experts`, or a known block's Linear `gate`."""
    modules = dict(model.named_modules())
    found: dict[int, tuple[str, object, object]] = {}
    for name, module in modules.items():
        parent = modules.get(name.rpartition(".")[0])
        if parent is None or getattr(parent, "experts", None) is None or getattr(module, "experts", None) is not None:
            continue
        kind = type(module).__name__
        linear_gate = kind == "Linear" and name.rpartition(".")[2] in ("gate", "router")
        if linear_gate and type(parent).__name__ not in LINEAR_BLOCKS:
            raise RecordError(f"router {name}: found a Linear in a {type(parent).__name__}, whose choice this "
                              f"recorder does not know; expected one of {', '.join(LINEAR_BLOCKS)}")
        if linear_gate or (ROUTER.search(kind) and kind != "Linear"):
            layer = _layer_number(name)
            if layer in found:
                raise RecordError(f"layer {layer}: found routers {found[layer][0]} and {name}, expected one")
            found[layer] = (name, module, parent)
    if not found:
        raise RecordError(f"{type(model).__name__}: found no router, expected modules called ...Router or "
                          "...Gate beside `experts`")
    return dict(sorted(found.items()))


def choice_of(name: str, module, block, output) -> tuple[np.ndarray, np.ndarray]:
    """Experts and weights [tokens, k], best first, from what a router returned."""
    if not isinstance(output, (tuple, list)):
        logits = _array(output).astype(np.float32)
        logits = logits.reshape(-1, logits.shape[-1])
        divide = LINEAR_BLOCKS.get(type(block).__name__)
        if divide is None:
            divide = getattr(block, "norm_topk_prob", None)
        k = getattr(block, "top_k", None)
        if k is None or divide is None:
            raise RecordError(f"router {name}: found one tensor and no top_k or norm_topk_prob in its "
                              f"{type(block).__name__}, expected experts or how they are chosen")
        scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        experts = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        weights = np.take_along_axis(scores, experts, axis=1)
        return experts, weights / weights.sum(axis=1, keepdims=True) if divide else weights
    tensors = [_array(t) for t in output if hasattr(t, "is_floating_point")]
    whole = [t for t in tensors if np.issubdtype(t.dtype, np.integer)]
    if len(whole) != 1:
        raise RecordError(f"router {name}: found {len(whole)} tensors of whole numbers in what a "
                          f"{type(module).__name__} returns, expected one, the chosen experts")
    experts = whole[0].reshape(-1, whole[0].shape[-1])
    floats = [t.reshape(-1, t.shape[-1]) for t in tensors if t is not whole[0]]
    same = [t for t in floats if t.shape == experts.shape]
    if same:
        # Logits come first; they have this shape too where every expert is chosen.
        weights = same[-1]
    else:
        wide = [t for t in floats if t.shape[0] == experts.shape[0] and t.shape[1] > experts.shape[1]]
        if len(wide) != 1:
            raise RecordError(f"router {name}: found no weights in what a {type(module).__name__} returns, "
                              f"expected a tensor like the experts' {list(experts.shape)}")
        weights = np.take_along_axis(wide[0], experts.astype(np.int64), axis=1)
    order = np.argsort(-weights, axis=1, kind="stable")  # top-k may be unsorted
    return np.take_along_axis(experts, order, axis=1), np.take_along_axis(weights, order, axis=1)


class HuggingFaceRecorder:
    def __init__(self, model, model_name: str | None = None):
        self.model = model
        self.routers = find_routers(model)
        config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
        number = next((int(n) for _, module, _ in self.routers.values()
                       for n in [getattr(module, "num_experts", None) or getattr(module, "n_routed_experts", None)
                                 or getattr(module, "out_features", None)] if n), 0)
        if not number:
            from .trace_file import expert_count

            number = expert_count(config)
        name = model_name or getattr(model.config, "_name_or_path", "") or type(model).__name__
        self.file = TraceFile(name, number, list(self.routers))
        generation = getattr(model, "generation_config", None)
        end = getattr(generation, "eos_token_id", None)
        self.end_tokens = set(end if isinstance(end, (list, tuple)) else [] if end is None else [end])

    @contextlib.contextmanager
    def batch(self, request_ids: list[str]):
        """Records one batch: one `model(...)` call or one `model.generate(...)`."""
        passes: list[dict] = []
        handles = [self.model.register_forward_pre_hook(
            lambda _, args, kwargs: passes.append(self._begin(args, kwargs)), with_kwargs=True)]
        for layer, (name, module, block) in self.routers.items():

            def record(module, args, output, layer=layer, name=name, block=block):
                if not passes:
                    raise RecordError(f"router {name} was called outside the model's own forward pass")
                if layer in passes[-1]["choices"]:
                    raise RecordError(f"layer {layer}: found two calls of its router in one pass, expected one "
                                      "(gradient checkpointing records twice; switch it off)")
                passes[-1]["choices"][layer] = choice_of(name, module, block, output)

            handles.append(module.register_forward_hook(record))
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()
        self._finish(request_ids, passes)

    @staticmethod
    def _begin(args, kwargs) -> dict:
        tokens = kwargs.get("input_ids", args[0] if args else None)
        shaped = tokens if tokens is not None else kwargs.get("inputs_embeds")
        if shaped is None:
            raise RecordError("the model's call: found neither input_ids nor inputs_embeds")
        batch, length = shaped.shape[:2]
        mask = kwargs.get("attention_mask")
        if mask is None or getattr(mask, "ndim", 0) != 2 or mask.shape[1] < length:
            kept = np.ones((batch, length), dtype=bool)
        else:
            kept = _array(mask)[:, -length:] != 0
        return {"kept": kept, "tokens": None if tokens is None else _array(tokens), "choices": {}}

    def _finish(self, request_ids: list[str], passes: list[dict]) -> None:
        if not passes:
            raise RecordError("batch: found no call of the model, expected one or more")
        num_requests = len(passes[0]["kept"])
        if len(request_ids) != num_requests or len(set(request_ids)) != num_requests:
            raise RecordError(f"batch: found request ids {list(request_ids)}, expected {num_requests} distinct ones")
        parts: list[list] = [[] for _ in request_ids]
        prompt_tokens = [0] * num_requests
        ended = [False] * num_requests
        for number, each in enumerate(passes):
            kept = each["kept"].copy()
            if len(kept) != num_requests:
                raise RecordError(f"pass {number}: found {len(kept)} rows, expected {num_requests}; beam search "
                                  "cannot be recorded")
            missing = [layer for layer in self.routers if layer not in each["choices"]]
            if missing:
                raise RecordError(f"pass {number}: found no choice of layers {missing}")
            for layer, (experts, _) in each["choices"].items():
                if len(experts) != kept.size:
                    raise RecordError(f"pass {number}, layer {layer}: found {len(experts)} tokens, expected "
                                      f"{kept.size} ({kept.shape[0]} rows of {kept.shape[1]})")
            experts = np.stack([each["choices"][layer][0] for layer in self.routers], axis=1)
            weights = np.stack([each["choices"][layer][1] for layer in self.routers], axis=1)
            for row in range(num_requests):
                if number > 0 and each["tokens"] is not None:
                    ended[row] |= any(int(token) in self.end_tokens for token in each["tokens"][row])
                if ended[row]:
                    continue
                at = row * kept.shape[1] + np.flatnonzero(kept[row])
                parts[row].append((experts[at], weights[at]))
                prompt_tokens[row] += len(at) if number == 0 else 0
        for row, request in enumerate(request_ids):
            self.file.add(Sequence(str(request), prompt_tokens[row],
                                   np.concatenate([e for e, _ in parts[row]]),
                                   np.concatenate([w for _, w in parts[row]])))

    def save(self, path):
        return self.file.save(path)
