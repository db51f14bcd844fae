"""Tests of workloads/small_moe. What needs PyTorch skips itself without.

  python3 tests/workloads/recorders/small_moe_test.py
"""

from __future__ import annotations

import collections
import itertools
import sys
import unittest
from pathlib import Path

try:
    import numpy as np
except ModuleNotFoundError:
    print("skipped: NumPy is not installed")
    raise SystemExit(77)

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "workloads/small_moe"))

import text  # noqa: E402
import train_moe  # noqa: E402

try:
    import torch

    import model
except ModuleNotFoundError:
    torch = model = None


class TextTest(unittest.TestCase):
    def test_merges_are_those_counted_by_hand(self):
        # "aab" x 3, "ab" x 2: the pair ab occurs 5 times, aa 3 times; then a with ab, 3 times.
        merges = text.learn_merges(collections.Counter({b"aab": 3, b"ab": 2}), 257 + 2)
        a, b = ord("a") + 1, ord("b") + 1
        self.assertEqual(merges, [(a, b), (a, 257)])
        self.assertEqual(text.Encoder(merges)(b"aab ab"), [258, ord(" ") + 1, 257])

    def test_incremental_counts_equal_counting_anew(self):
        draw = np.random.default_rng(1)
        pieces = collections.Counter(bytes(draw.choice(list(b"abcd"), draw.integers(1, 9))) for _ in range(300))
        words = {piece: [c + 1 for c in piece] for piece in pieces}
        expected = []
        for new in range(257, 257 + 30):
            pairs = collections.Counter()
            for piece, word in words.items():
                for pair in zip(word, word[1:]):
                    pairs[pair] += pieces[piece]
            pair = min(pairs, key=lambda p: (-pairs[p], p))
            expected.append(pair)
            for piece, word in words.items():
                at, joined = 0, []
                while at < len(word):
                    whole = tuple(word[at : at + 2]) == pair
                    joined.append(new if whole else word[at])
                    at += 2 if whole else 1
                words[piece] = joined
        self.assertEqual(text.learn_merges(pieces, 257 + 30), expected)

    def test_no_byte_is_lost(self):
        data = "  fn(x) {\n\treturn 12; } // Größe\n".encode()
        self.assertEqual(b"".join(text.PIECE.findall(data)), data)


class PlacementTest(unittest.TestCase):
    def test_finds_planted_groups(self):
        draw = np.random.default_rng(2)
        group = draw.permutation(np.repeat(np.arange(4), 4))
        coactivation = draw.random((16, 16)) + 5.0 * (group[:, None] == group[None, :])
        device = train_moe.learn_placement(coactivation + coactivation.T, 4)
        for a, b in itertools.combinations(range(16), 2):
            self.assertEqual(device[a] == device[b], group[a] == group[b])

    def test_devices_are_equally_full(self):
        draw = np.random.default_rng(3).random((64, 64))
        self.assertEqual(np.bincount(train_moe.learn_placement(draw + draw.T, 8)).tolist(), [8] * 8)


@unittest.skipIf(torch is None, "PyTorch is not installed")
class ModelTest(unittest.TestCase):
    def restricted_by_hand(self, scores, device_of, similarity, k, budget, method):
        """The rule, one token at a time, as its description says it."""
        best = sorted(range(len(scores)), key=lambda e: -scores[e])[:k]
        devices = []
        for expert in best:
            if device_of[expert] not in devices and len(devices) < budget:
                devices.append(device_of[expert])
        inside = [e for e in range(len(scores)) if device_of[e] in devices]
        if method == "router_score":
            return sorted(inside, key=lambda e: -scores[e])[:k]
        used = {e for e in best if e in inside}
        chosen = []
        for expert in best:
            if expert not in inside:
                expert = max((e for e in inside if e not in used), key=lambda e: similarity[expert][e])
                used.add(expert)
            chosen.append(expert)
        return chosen

    def test_the_restriction_is_the_rule(self):
        torch.manual_seed(4)
        scores = torch.rand(200, 32).softmax(-1)
        device_of = torch.randperm(32) // 4
        similarity = torch.rand(32, 32)
        for method, budget in itertools.product(train_moe.METHODS, (1, 2, 4)):
            rule = model.Restriction(method, budget, 8, device_of[None], similarity[None])
            chosen, weighed_by = rule.choose(0, scores, 4)
            for token in range(200):
                by_hand = self.restricted_by_hand(scores[token].tolist(), device_of.tolist(), similarity.tolist(),
                                                  4, budget, method)
                self.assertEqual(chosen[token].tolist(), by_hand)
                self.assertLessEqual(len({int(device_of[e]) for e in by_hand}), budget)
            if method == "similarity":
                torch.testing.assert_close(weighed_by, scores.topk(4).indices)

    def test_experts_equal_a_loop_over_tokens(self):
        shape = model.Shape(vocabulary=16, hidden=16, num_experts=8, num_topk=3, expert_hidden=8)
        torch.manual_seed(5)
        x = torch.randn(40, 16)
        experts = torch.rand(40, 8).topk(3).indices
        experts[:, 0] = torch.where((experts == 5).any(1), experts[:, 0], 5)  # an uneven load
        weights = torch.rand(40, 3)
        counts = torch.bincount(experts.flatten(), minlength=8)
        for products in ("padded", model.working_products(torch.device("cpu"))):
            layer = model.Experts(shape, products)
            torch.nn.init.normal_(layer.gate_up)
            torch.nn.init.normal_(layer.down)
            out = layer(x, experts, weights, counts)
            for token in range(40):
                expected = torch.zeros(16)
                for expert, weight in zip(experts[token], weights[token]):
                    gate, up = (x[token] @ layer.gate_up[expert]).chunk(2)
                    expected += weight * ((torch.nn.functional.silu(gate) * up) @ layer.down[expert])
                torch.testing.assert_close(out[token], expected, rtol=1e-4, atol=1e-4)

    def test_gradients_equal_finite_differences(self):
        destination = torch.randperm(12).view(6, 2)
        x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
        rows = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
        self.assertTrue(torch.autograd.gradcheck(lambda a: model.Spread.apply(a, destination, 14), (x,)))
        self.assertTrue(torch.autograd.gradcheck(lambda a: model.Gather.apply(a, destination), (rows,)))

    def test_no_token_sees_a_later_one(self):
        shape = model.Shape(vocabulary=20, num_moe_layers=2, hidden=32, num_heads=2, num_experts=8, num_topk=2,
                            expert_hidden=8, dense_hidden=32, context=16)
        torch.manual_seed(6)
        net = model.SmallMoe(shape, "padded")
        tokens = torch.randint(0, 20, (1, 16))
        changed = tokens.clone()
        changed[0, 10] = (changed[0, 10] + 1) % 20
        with torch.no_grad():
            before, after = net(tokens)[0], net(changed)[0]
        torch.testing.assert_close(before[:, :10], after[:, :10])
        self.assertGreater(float((before[:, 10:] - after[:, 10:]).abs().max()), 1e-4)


if __name__ == "__main__":
    unittest.main()
