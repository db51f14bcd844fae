"""Records what vLLM returns with `enable_return_routed_experts=True`.

    llm = vllm.LLM(model, enable_return_routed_experts=True)
    outputs = llm.generate(prompts, sampling)
    record(outputs, config=llm.llm_engine.model_config.hf_text_config, model_name=model).save("trace.npz")

A completion's `routed_experts` is [tokens, layers, k] over all layers, dense ones too, with a row for
every token that went through the model: all but the last one sampled. Later versions give the prompt's
rows once per request, as `prompt_routed_experts`. vLLM returns no router weights. Token counts are held
against the rows; a request that was cut short or has no routing is refused by name.
"""

from __future__ import annotations

import numpy as np

from .trace_file import RecordError, Sequence, TraceFile, expert_count, moe_layers


def _rows(request, completion, num_prompt: int, num_output: int) -> np.ndarray:
    where = f"request {request.request_id}, completion {completion.index}"
    rows = completion.routed_experts
    if rows is None:
        raise RecordError(f"{where}: found no routed_experts, expected vLLM with enable_return_routed_experts")
    rows = np.asarray(rows)
    prompt_rows = getattr(request, "prompt_routed_experts", None)
    if prompt_rows is not None and len(rows) <= num_output:
        rows = np.concatenate([np.asarray(prompt_rows), rows])
    total = num_prompt + num_output
    if len(rows) not in (total - 1, total):
        raise RecordError(f"{where}: found routing of {len(rows)} tokens, expected {total - 1} or {total}, as there "
                          f"are {num_prompt} prompt and {num_output} output tokens")
    # Where a row is there for the last token too, it is a filling: that token was never fed back.
    return rows[: total - 1] if num_output > 0 else rows


def record(outputs, config, model_name: str) -> TraceFile:
    """One sequence per completion, called REQUEST, or REQUEST#INDEX where a request has several."""
    layers = moe_layers(config)
    file = TraceFile(model_name, expert_count(config), layers)
    for request in outputs:
        if not request.finished:
            raise RecordError(f"request {request.request_id}: found it unfinished, expected finished requests")
        if request.prompt_token_ids is None:
            raise RecordError(f"request {request.request_id}: found no prompt_token_ids")
        for completion in request.outputs:
            name = str(request.request_id)
            if len(request.outputs) > 1:
                name += f"#{completion.index}"
            rows = _rows(request, completion, len(request.prompt_token_ids), len(completion.token_ids))
            if rows.ndim != 3:
                raise RecordError(f"request {name}: found routing of shape {list(rows.shape)}, expected "
                                  "[tokens, layers, k]")
            if rows.shape[1] == getattr(config, "num_hidden_layers", None):
                rows = rows[:, layers]
            file.add(Sequence(name, min(len(request.prompt_token_ids), len(rows)), rows))
    return file
