"""Records which experts tokens choose, for `coterie trace import`.

One module per engine: `huggingface`, `vllm`, `sglang`. Each needs NumPy and its engine only, and each
writes the same archive through `TraceFile`.
"""

from .trace_file import RecordError, Sequence, TraceFile

__all__ = ["RecordError", "Sequence", "TraceFile"]
