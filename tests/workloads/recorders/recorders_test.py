"""Tests of workloads/recorders: against tiny transformers models where PyTorch and transformers are
installed, else (and for vLLM and SGLang) against fakes with the interfaces that the engines have:
vLLM's RequestOutput and CompletionOutput (vllm-project/vllm 003d3ee, vllm/outputs.py), the records of
SGLang's expert_distribution.py (sgl-project/sglang 02295fe, python/sglang/srt/eplb).

  COTERIE=build/release/bin/coterie python3 tests/workloads/recorders/recorders_test.py
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import threading
import unittest
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

try:
    import numpy as np
except ModuleNotFoundError:
    print("skipped: NumPy is not installed")
    raise SystemExit(77)

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "workloads/recorders"))

from coterie_recorders import RecordError, Sequence, TraceFile  # noqa: E402
from coterie_recorders import huggingface, sglang, vllm  # noqa: E402
from coterie_recorders.trace_file import moe_layers  # noqa: E402

try:
    import torch
    import transformers
except ModuleNotFoundError:
    torch = transformers = None

COTERIE = os.environ.get("COTERIE", "")


def routing(tokens: int, layers: int, k: int, num_experts: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return draw.random((tokens, layers, num_experts)).argsort(axis=2)[:, :, :k]


def imported(test: unittest.TestCase, file: TraceFile) -> str:
    """What `coterie trace import` says of the archive."""
    if not COTERIE:
        test.skipTest("COTERIE names no program")
    with tempfile.TemporaryDirectory() as folder:
        file.save(f"{folder}/trace.npz")
        done = subprocess.run([COTERIE, "trace", "import", f"{folder}/trace.npz", "-o", f"{folder}/t.moet"],
                              capture_output=True, text=True)
        test.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout + done.stderr


class TraceFileTest(unittest.TestCase):
    def file(self) -> TraceFile:
        return TraceFile("tiny", 8, [1, 2])

    def test_saves_what_was_added(self):
        file = self.file()
        first, second = routing(5, 2, 3, 8), routing(2, 2, 3, 8, seed=1)
        file.add(Sequence("a", 4, first, np.full((5, 2, 3), 0.25)))
        file.add(Sequence("b", 2, second, np.full((2, 2, 3), 0.5)))
        with tempfile.TemporaryDirectory() as folder:
            with np.load(file.save(f"{folder}/t.npz")) as saved:
                np.testing.assert_array_equal(saved["routed_experts"], np.concatenate([first, second]))
                self.assertEqual(saved["seq_len"].tolist(), [5, 2])
                self.assertEqual(saved["prompt_len"].tolist(), [4, 2])
                self.assertEqual(saved["request_id"].tolist(), ["a", "b"])
                self.assertEqual(str(saved["model_name"]), "tiny")
            self.assertEqual(os.listdir(folder), ["t.npz"])

    def test_coterie_imports_it(self):
        file = self.file()
        file.add(Sequence("a", 4, routing(5, 2, 3, 8), np.full((5, 2, 3), 0.25)))
        file.add(Sequence("b", 1, routing(7, 2, 3, 8, seed=2), np.full((7, 2, 3), 0.25)))
        self.assertIn("2 layers, 12 tokens in 2 sequences, top-3 of 8 experts, with router weights",
                      imported(self, file))

    def test_refuses_what_is_no_trace(self):
        good = routing(5, 2, 3, 8)
        for change, message in [
            (lambda e: e[:, :1], "expected [tokens, 2 layers, k]"),
            (lambda e: e[:0], "expected [tokens, 2 layers, k]"),
            (lambda e: e + 1, "token 0, layer 1: found expert 8, expected ids below 8"),
            (lambda e: np.zeros_like(e), "found experts [0, 0, 0], expected distinct ones"),
            (lambda e: e.astype(float), "expected whole numbers"),
        ]:
            experts = good.copy()
            experts[0, 0, 0] = 7 if 7 not in experts[0, 0, 1:] else experts[0, 0, 0]
            experts = change(experts)
            with self.assertRaises(RecordError) as caught:
                self.file().add(Sequence("a", 0, experts))
            self.assertIn(message, str(caught.exception))
        with self.assertRaisesRegex(RecordError, "found 6 prompt tokens of 5"):
            self.file().add(Sequence("a", 6, good))
        with self.assertRaisesRegex(RecordError, "negative or not a number"):
            self.file().add(Sequence("a", 5, good, np.full(good.shape, np.nan)))
        with self.assertRaisesRegex(RecordError, "no sequences to write"):
            self.file().save("/nonexistent/t.npz")

    def test_moe_layers_of_configurations(self):
        # DeepSeek-V2-Lite: layer 0 is dense; Llama-4-like: every second layer; Qwen's mlp_only_layers.
        self.assertEqual(moe_layers(SimpleNamespace(num_hidden_layers=4, first_k_dense_replace=1)), [1, 2, 3])
        self.assertEqual(moe_layers(SimpleNamespace(num_hidden_layers=4, decoder_sparse_step=2)), [1, 3])
        self.assertEqual(moe_layers(SimpleNamespace(num_hidden_layers=3, mlp_only_layers=[1])), [0, 2])


@dataclass
class CompletionOutput:  # vLLM's fields that are read
    index: int
    token_ids: list
    routed_experts: np.ndarray | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt_token_ids: list | None
    outputs: list = field(default_factory=list)
    finished: bool = True


class VllmTest(unittest.TestCase):
    config = SimpleNamespace(num_hidden_layers=3, first_k_dense_replace=1, n_routed_experts=16)

    def outputs(self, rows: int) -> list[RequestOutput]:
        experts = routing(rows, 3, 4, 16).astype(np.int32)
        experts[:, 0] = 0  # vLLM leaves a dense layer's rows zero
        return [RequestOutput("r0", [1] * 5, [CompletionOutput(0, [2] * 3, experts)])]

    def test_drops_dense_layers_and_marks_the_prompt(self):
        outputs = self.outputs(7)
        file = vllm.record(outputs, self.config, "tiny")
        self.assertEqual(file.layers, [1, 2])
        self.assertEqual(file.sequences[0].num_prompt_tokens, 5)
        np.testing.assert_array_equal(file.sequences[0].experts, outputs[0].outputs[0].routed_experts[:, 1:])
        self.assertIn("2 layers, 7 tokens in 1 sequence", imported(self, file))

    def test_leaves_the_filled_row_of_the_last_token_out(self):
        self.assertEqual(len(vllm.record(self.outputs(8), self.config, "tiny").sequences[0].experts), 7)

    def test_joins_the_prompts_rows_of_later_versions(self):
        whole = self.outputs(7)[0]
        rows = whole.outputs[0].routed_experts
        split = RequestOutput("r0", whole.prompt_token_ids, [CompletionOutput(0, [2] * 3, rows[5:])])
        split.prompt_routed_experts = rows[:5]
        np.testing.assert_array_equal(vllm.record([split], self.config, "tiny").sequences[0].experts, rows[:, 1:])

    def test_several_completions_have_names_of_their_own(self):
        outputs = self.outputs(7)
        outputs[0].outputs.append(CompletionOutput(1, [2] * 3, outputs[0].outputs[0].routed_experts))
        names = [s.request_id for s in vllm.record(outputs, self.config, "tiny").sequences]
        self.assertEqual(names, ["r0#0", "r0#1"])

    def test_refuses_other_counts(self):
        with self.assertRaisesRegex(RecordError, "found routing of 6 tokens, expected 7 or 8, as there are 5 prompt "
                                                 "and 3 output tokens"):
            vllm.record(self.outputs(6), self.config, "tiny")
        missing = [RequestOutput("r0", [1], [CompletionOutput(0, [2])])]
        with self.assertRaisesRegex(RecordError, "found no routed_experts"):
            vllm.record(missing, self.config, "tiny")


class FakeSglang:
    """The three routes of SGLang's server; the dump is what _DetailAccumulator.dump saves."""

    def __init__(self, folder: Path, dumps: list[dict]):
        self.asked: list[str] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                fake.asked.append(self.path)
                if self.path == "/dump_expert_distribution_record":
                    for rank, dump in enumerate(dumps):
                        path = folder / f"expert_distribution_recorder_17.5_{rank}.pt"
                        path.write_bytes(pickle.dumps(dump))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class SglangTest(unittest.TestCase):
    """Two requests, one of whose prompts comes in two chunks, then decoded together: 4 layers of which
    layer 0 is dense, top-2 of 8 experts, padded to 8 columns with -1."""

    def setUp(self):
        self.experts = {"a": routing(7, 3, 2, 8, seed=3), "b": routing(5, 3, 2, 8, seed=4)}

    def passes(self, named: bool) -> list[dict]:
        def record(parts, mode):
            tokens = np.concatenate([self.experts[n][begin:end] for n, begin, end in parts])
            ids = np.full((4, len(tokens), 8), -1, dtype=np.int32)
            ids[1:, :, :2] = tokens.transpose(1, 0, 2)
            each = {"topk_ids_of_layer": ids, "forward_mode": mode,
                    "positions": [p for _, begin, end in parts for p in range(begin, end)],
                    "extend_seq_lens": None if mode == 2 else [end - begin for _, begin, end in parts]}
            if named:
                each["rids"] = [n for n, _, _ in parts]
            return each

        return [record([("a", 0, 3)], 1), record([("a", 3, 5), ("b", 0, 3)], 1),
                record([("a", 5, 6), ("b", 3, 4)], 2), record([("a", 6, 7), ("b", 4, 5)], 2)]

    def run_recorder(self, dumps: list[dict]) -> TraceFile:
        with tempfile.TemporaryDirectory() as folder:
            fake = FakeSglang(Path(folder), dumps)
            try:
                recorder = sglang.SglangRecorder(fake.url, folder, timeout=4,
                                                 load=lambda path: pickle.loads(path.read_bytes()))
                with recorder:
                    pass
                self.assertEqual([path.split("_")[0] for path in fake.asked], ["/start", "/stop", "/dump"])
                return recorder.convert(8, "tiny")
            finally:
                fake.close()

    def check(self, file: TraceFile, names: list[str]):
        self.assertEqual(file.layers, [1, 2, 3])
        self.assertEqual([s.request_id for s in file.sequences], names)
        self.assertEqual([s.num_prompt_tokens for s in file.sequences], [5, 3])
        for sequence, request in zip(file.sequences, "ab"):
            np.testing.assert_array_equal(sequence.experts, self.experts[request])

    def test_joins_passes_by_request_id(self):
        self.check(self.run_recorder([{"records": self.passes(True), "last_physical_to_logical_map": None}]), ["a", "b"])

    def test_joins_passes_by_position_and_counts_a_rank_once(self):
        dump = {"records": self.passes(False), "last_physical_to_logical_map": None}
        self.check(self.run_recorder([dump, dump]), ["rank 0 request 0", "rank 0 request 1"])

    def test_maps_physical_experts_to_logical_ones(self):
        # Physical expert p holds logical expert 7 - p in every layer.
        passes = self.passes(True)
        for each in passes:
            ids = each["topk_ids_of_layer"]
            each["topk_ids_of_layer"] = np.where(ids >= 0, 7 - ids, -1)
        mapping = np.tile(np.arange(8)[::-1], (4, 1))
        self.check(self.run_recorder([{"records": passes, "last_physical_to_logical_map": mapping}]), ["a", "b"])

    def test_says_when_no_server_answers(self):
        recorder = sglang.SglangRecorder("http://127.0.0.1:9", "/nonexistent", timeout=1)
        with self.assertRaisesRegex(RecordError, "could not start the recorder"):
            with recorder:
                pass

    def test_refuses_dumps_of_other_modes(self):
        with self.assertRaisesRegex(RecordError, "expected records of mode per_token"):
            self.run_recorder([{"logical_count": np.zeros((1, 4, 8)), "rank": 0}])


class FakeTensor:
    def __init__(self, values):
        self.values = np.asarray(values)
        self.shape, self.ndim = self.values.shape, self.values.ndim

    def is_floating_point(self):
        return np.issubdtype(self.values.dtype, np.floating)

    def detach(self):
        return self

    float = cpu = detach

    def numpy(self):
        return self.values


class FakeModule:
    """What of torch.nn.Module the recorder uses: names, hooks, a call."""

    def __init__(self, forward=None, **children):
        self.children, self.hooks, self.pre_hooks, self.forward = children, [], [], forward
        for name, child in children.items():
            setattr(self, name, child)

    def named_modules(self, prefix=""):
        yield prefix, self
        for name, child in self.children.items():
            yield from child.named_modules(f"{prefix}.{name}".lstrip("."))

    def _register(self, hooks, hook):
        hooks.append(hook)
        return SimpleNamespace(remove=lambda: hooks.remove(hook))

    def register_forward_hook(self, hook):
        return self._register(self.hooks, hook)

    def register_forward_pre_hook(self, hook, with_kwargs):
        return self._register(self.pre_hooks, hook)

    def __call__(self, *args, **kwargs):
        for hook in self.pre_hooks:
            hook(self, args, kwargs)
        output = self.forward(*args, **kwargs)
        for hook in self.hooks:
            hook(self, args, output)
        return output


class TopKRouter(FakeModule):
    num_experts = 8


class Linear(FakeModule):
    out_features = 8


class MixtralSparseMoeBlock(FakeModule):
    top_k = 2


class SomeMoeBlock(FakeModule):
    top_k = 2


class FakeModelsTest(unittest.TestCase):
    """Two layers, whose routers see a batch of two requests: the first padded on the left."""

    def model(self, router, block_class):
        blocks = {}
        for number, layer in enumerate("01"):
            gate = router(number)
            block = block_class(gate=gate, experts=FakeModule())
            blocks[layer] = FakeModule(mlp=block)

        def forward(input_ids, attention_mask):
            for layer in blocks.values():
                layer.mlp.gate(input_ids)

        model = FakeModule(forward, model=FakeModule(layers=FakeModule(**blocks)))
        model.config = SimpleNamespace(_name_or_path="tiny")
        model.generation_config = SimpleNamespace(eos_token_id=9)
        return model

    @staticmethod
    def logits(layer, tokens):
        """Depends on layer and token alone, so that the test can say what was chosen."""
        return np.stack([np.sin(np.arange(8) * (token + 2) * (layer + 1)) for token in tokens.flatten()]).astype(float)

    def record(self, router, block_class):
        model = self.model(router, block_class)
        recorder = huggingface.HuggingFaceRecorder(model)
        prompt = np.array([[0, 1, 2], [3, 4, 5]])
        mask = np.array([[0, 1, 1], [1, 1, 1]])
        with recorder.batch(["x", "y"]):
            model(input_ids=FakeTensor(prompt), attention_mask=FakeTensor(mask))
            for step, tokens in enumerate(([[6], [9]], [[7], [0]])):  # 9 ends the second request
                mask = np.concatenate([mask, np.ones((2, 1), dtype=int)], axis=1)
                model(input_ids=FakeTensor(tokens), attention_mask=FakeTensor(mask))
        return recorder.file

    def check(self, file, expected):
        self.assertEqual([s.request_id for s in file.sequences], ["x", "y"])
        self.assertEqual([s.num_prompt_tokens for s in file.sequences], [2, 3])
        for sequence, tokens in zip(file.sequences, ([1, 2, 6, 7], [3, 4, 5])):
            for layer in range(2):
                experts, weights = expected(layer, np.array(tokens))
                np.testing.assert_array_equal(sequence.experts[:, layer], experts)
                np.testing.assert_allclose(sequence.weights[:, layer], weights, rtol=1e-5)

    def softmax_top2(self, layer, tokens):
        scores = np.exp(self.logits(layer, tokens))
        scores /= scores.sum(1, keepdims=True)
        experts = np.argsort(-scores, axis=1)[:, :2]
        weights = np.take_along_axis(scores, experts, 1)
        return experts, weights / weights.sum(1, keepdims=True)

    def test_routers_that_return_their_choice(self):
        def router(number):
            def forward(tokens):
                experts, weights = self.softmax_top2(number, tokens.values)
                # Unsorted, as torch.topk(sorted=False) may return them.
                return FakeTensor(self.logits(number, tokens.values)), FakeTensor(weights[:, ::-1]), \
                    FakeTensor(experts[:, ::-1])
            return TopKRouter(forward)

        self.check(self.record(router, SomeMoeBlock), self.softmax_top2)

    def test_linear_gates_of_known_blocks(self):
        def router(number):
            return Linear(lambda tokens: FakeTensor(self.logits(number, tokens.values)))

        self.check(self.record(router, MixtralSparseMoeBlock), self.softmax_top2)

    def test_refuses_unknown_blocks_and_models_without_routers(self):
        with self.assertRaisesRegex(RecordError, "found a Linear in a SomeMoeBlock"):
            huggingface.HuggingFaceRecorder(self.model(lambda number: Linear(None), SomeMoeBlock))
        dense = FakeModule(model=FakeModule())
        dense.config = SimpleNamespace()
        with self.assertRaisesRegex(RecordError, "found no router"):
            huggingface.HuggingFaceRecorder(dense)


@unittest.skipIf(transformers is None, "PyTorch or transformers is not installed")
class TransformersTest(unittest.TestCase):
    """Tiny models with random weights. The reference redoes each model's choice from its router's
    weight and input, as the papers and configurations define it, not as the router's code does."""

    common = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 16, "moe_intermediate_size": 16,
              "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
              "num_experts_per_tok": 4, "max_position_embeddings": 64, "eos_token_id": None, "pad_token_id": 0}

    def record(self, name, **more):
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**{**self.common, **more})
        model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
        with torch.no_grad():  # random weights of use: not zero, not all alike
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.2)
        recorder = huggingface.HuggingFaceRecorder(model)
        inputs = {}
        hooks = []
        for layer, (_, module, _) in recorder.routers.items():

            def keep(module, args, output, layer=layer):
                inputs[layer] = args[0].reshape(-1, 32)  # a hook that returned it would replace the output

            hooks.append(module.register_forward_hook(keep))
        with torch.no_grad(), recorder.batch(["a", "b"]):
            model(input_ids=torch.randint(1, 50, (2, 9)), attention_mask=torch.ones(2, 9, dtype=torch.long))
        for hook in hooks:
            hook.remove()
        experts = np.concatenate([s.experts for s in recorder.file.sequences])
        weights = np.concatenate([s.weights for s in recorder.file.sequences])
        for index, (layer, (_, router, _)) in enumerate(recorder.routers.items()):
            logits = inputs[layer].float() @ router.weight.float().T
            yield (recorder.file, layer, router, logits.detach(), torch.from_numpy(experts[:, index]).long(),
                   torch.from_numpy(weights[:, index]))

    def check_softmax(self, name, renormalised, **more):
        seen = 0
        for _, _, _, logits, experts, weights in self.record(name, **more):
            scores = logits.softmax(-1)
            best = scores.topk(experts.shape[1])
            torch.testing.assert_close(experts, best.indices)
            expected = best.values / best.values.sum(-1, keepdim=True) if renormalised else best.values
            torch.testing.assert_close(weights, expected, rtol=1e-3, atol=1e-4)
            seen += 1
        self.assertEqual(seen, 3)

    def test_mixtral(self):
        self.check_softmax("Mixtral", True, num_local_experts=16)

    def test_qwen3(self):
        self.check_softmax("Qwen3Moe", True, num_experts=16, norm_topk_prob=True)

    def test_olmoe(self):
        self.check_softmax("Olmoe", False, num_experts=16, norm_topk_prob=False)

    def test_gpt_oss(self):
        for _, _, router, logits, experts, weights in self.record("GptOss", num_local_experts=16):
            best = (logits + router.bias.float()).topk(4)
            torch.testing.assert_close(experts, best.indices)
            torch.testing.assert_close(weights, best.values.softmax(-1).detach(), rtol=1e-3, atol=1e-4)

    def test_deepseek_v3(self):
        # Sigmoid scores; groups count as their two best; one dense layer in front; top-4 of 2 groups of 4.
        layers = []
        for file, layer, _, logits, experts, weights in self.record(
                "DeepseekV3", n_routed_experts=16, n_group=4, topk_group=2, first_k_dense_replace=1,
                norm_topk_prob=True, routed_scaling_factor=1.0, n_shared_experts=1, q_lora_rank=16, kv_lora_rank=8,
                qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, num_key_value_heads=4, head_dim=4):
            layers.append(layer)
            scores = logits.sigmoid()
            group = scores.view(-1, 4, 4).topk(2).values.sum(-1).topk(2).indices
            allowed = torch.zeros(len(scores), 4, dtype=torch.bool).scatter_(1, group, True).repeat_interleave(4, 1)
            best = scores.masked_fill(~allowed, 0.0).topk(4)
            torch.testing.assert_close(experts, best.indices)
            torch.testing.assert_close(weights, best.values / best.values.sum(-1, keepdim=True), rtol=1e-3, atol=1e-4)
        self.assertEqual(layers, [1, 2])

    def test_generation_marks_what_is_decoded(self):
        torch.manual_seed(0)
        config = transformers.MixtralConfig(**{**self.common, "num_local_experts": 8})
        model = transformers.MixtralForCausalLM(config).eval()
        recorder = huggingface.HuggingFaceRecorder(model)
        ids = torch.tensor([[0, 0, 5, 6], [1, 2, 3, 4]])
        with torch.no_grad(), recorder.batch(["short", "long"]):
            model.generate(input_ids=ids, attention_mask=(ids != 0).long(), max_new_tokens=5, do_sample=False)
        # Of 5 new tokens 4 are fed back.
        self.assertEqual([(s.num_prompt_tokens, len(s.experts)) for s in recorder.file.sequences], [(2, 6), (4, 8)])
        self.assertIn("3 layers, 14 tokens in 2 sequences, top-4 of 8", imported(self, recorder.file))


if __name__ == "__main__":
    unittest.main()
