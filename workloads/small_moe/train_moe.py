#!/usr/bin/env python3
"""Trains the small mixture of experts whose routing is bundled, records it, and prunes it.

  train_moe.py prepare corpus.tar.xz -o tokens.npz.xz          no GPU; corpus from pack_corpus.py
  train_moe.py run tokens.npz.xz -o OUT --seconds 280          one GPU with 16 GB or more
  train_moe.py run tokens.npz.xz -o OUT --seconds 60 --size tiny      on a CPU, to try it

`run` divides its seconds: 55 percent train the model; a few record its routing; the rest fine-tunes
it under collaboration pruning (router score and similarity, 1, 2 and 4 of 8 devices) and, as long,
without pruning, for every seed. What is done is written at once, so that a run cut off loses little:

  losses.csv          training and held-out loss over time
  trace.npz           routing on held-out text, for `coterie trace import` (16k tokens, to be bundled)
  trace_large.npz     the same with more sequences
  placement.json      8 devices of 8 experts, learnt by co-activation on training text
  pruning.csv         held-out loss and fan-out before and after fine-tuning, a row per run
  summary.json        the model, its losses by domain, collaboration statistics, versions and times
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

START = time.monotonic()
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np  # noqa: E402

import text  # noqa: E402

NUM_DEVICES = 8
BUDGETS = (1, 2, 4)
METHODS = ("router_score", "similarity")


@dataclass(frozen=True)
class Plan:
    """What a size trains with. A batch has `batch` windows of the model's context."""

    shape: dict
    batch: int
    learning_rate: float = 1e-3
    tuning_rate: float = 3e-4
    balance: float = 0.01  # the balancing loss's factor
    held_out_windows: int = 64  # per domain
    tuning_windows: int = 24  # per domain, for the many evaluations of the fine-tuned models
    learn_tokens: int = 1 << 18  # of training text, from which the placement is learnt
    sequences: int = 6  # per domain in trace.npz
    large_sequences: int = 32
    sequence_tokens: int = 256


PLANS = {
    "small": Plan(shape={}, batch=64),
    "tiny": Plan(shape={"num_moe_layers": 2, "hidden": 64, "num_heads": 2, "num_experts": 32, "num_topk": 4,
                        "expert_hidden": 16, "dense_hidden": 128, "context": 64},
                 batch=8, held_out_windows=2, tuning_windows=2, learn_tokens=1024, sequences=2,
                 large_sequences=4, sequence_tokens=48),
}


def say(*words) -> None:
    print(f"[{time.monotonic() - START:6.1f} s]", *words, flush=True)


def learn_placement(coactivation: np.ndarray, num_devices: int) -> np.ndarray:
    """Device of each expert [experts], equally many on each: greedy groups, then pairwise swaps that
    raise the co-activation inside groups until none does."""
    num_experts = len(coactivation)
    size = num_experts // num_devices
    weight = coactivation.astype(np.float64).copy()
    np.fill_diagonal(weight, 0.0)
    device = np.full(num_experts, -1)
    for group in range(num_devices):
        free = np.flatnonzero(device < 0)
        members = [int(free[np.argmax(weight[np.ix_(free, free)].sum(1))])]
        device[members[0]] = group
        while len(members) < size:
            free = np.flatnonzero(device < 0)
            members.append(int(free[np.argmax(weight[np.ix_(free, members)].sum(1))]))
            device[members[-1]] = group
    for _ in range(100 * num_experts):
        one_hot = np.eye(num_devices)[device]
        to_group = weight @ one_hot  # [experts, devices]
        own = to_group[np.arange(num_experts), device]
        # Swapping a and b: each gains the other's group and loses its own, a pair that stays apart.
        gain = to_group[:, device] + to_group[:, device].T - own[:, None] - own[None, :] - 2 * weight
        gain[device[:, None] == device[None, :]] = -np.inf
        a, b = np.unravel_index(np.argmax(gain), gain.shape)
        if gain[a, b] <= 1e-9 * max(1.0, weight.sum()):
            break
        device[a], device[b] = device[b], device[a]
    return device


class Data:
    """Training and held-out text on the device."""

    def __init__(self, tokens: text.Tokens, torch, device):
        self.tokens, self.torch, self.device = tokens, torch, device
        training = np.repeat(~tokens.held_out, np.diff(tokens.starts))
        self.training = torch.from_numpy(tokens.tokens[training].astype(np.int32)).to(device)
        self.bytes_per_token = float(tokens.num_bytes.sum()) / len(tokens.tokens)

    def batch(self, generator, count: int, length: int):
        starts = self.torch.randint(0, len(self.training) - length - 1, (count, 1), generator=generator,
                                    device=self.device)
        return self.training[starts + self.torch.arange(length + 1, device=self.device)].long()

    def held_out_windows(self, count: int, length: int) -> dict[str, "object"]:
        """`count` windows per domain, spread evenly over its held-out text."""
        windows = {}
        for index, name in enumerate(self.tokens.domains):
            mine = np.repeat((self.tokens.domain == index) & self.tokens.held_out, np.diff(self.tokens.starts))
            stream = self.tokens.tokens[mine]
            if len(stream) <= length + 1:
                continue
            starts = np.linspace(0, len(stream) - length - 2, count).astype(np.int64)
            taken = stream[starts[:, None] + np.arange(length + 1)].astype(np.int64)
            windows[name] = self.torch.from_numpy(taken).to(self.device)
        return windows

    def sequences(self, count: int, length: int) -> list[tuple[str, int, np.ndarray]]:
        """Per domain up to `count` held-out documents: (domain, document, tokens), each from a third
        of its document on, because files of a kind begin alike. Domains stand in blocks of two, so
        that even and odd sequences have the same domains."""
        by_domain = []
        for index, name in enumerate(self.tokens.domains):
            found = []
            for document in np.flatnonzero((self.tokens.domain == index) & self.tokens.held_out):
                begin, end = self.tokens.starts[document], self.tokens.starts[document + 1] - 1
                begin += (end - begin) // 3
                if end - begin >= length and len(found) < count:
                    found.append((name, int(document), self.tokens.tokens[begin : begin + length].astype(np.int64)))
            by_domain.append(found[: len(found) // 2 * 2])
        ordered = []
        for pair in range(0, max(map(len, by_domain)), 2):
            for found in by_domain:
                ordered += found[pair : pair + 2]
        return ordered


class Run:
    def __init__(self, arguments: argparse.Namespace):
        import torch

        import model as models

        self.torch, self.models = torch, models
        self.out: Path = arguments.output
        self.out.mkdir(parents=True, exist_ok=True)
        self.deadline = START + arguments.seconds
        self.seconds, self.seeds = arguments.seconds, arguments.seeds
        self.plan = PLANS[arguments.size]
        name = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.device = torch.device(name)
        if name == "cpu":
            torch.set_num_threads(1)  # the tiny model's products are too small to share
        say("reading", arguments.tokens)
        tokens = text.read_tokens(arguments.tokens)
        self.shape = models.Shape(vocabulary=tokens.vocabulary, **self.plan.shape)
        self.data = Data(tokens, torch, self.device)
        products = arguments.products or models.working_products(self.device)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.manual_seed(arguments.seed)
        self.model = models.SmallMoe(self.shape, products).to(self.device)
        self.call = torch.compile(self.model) if arguments.compile else self.model
        self.summary: dict = {
            "shape": asdict(self.shape), "plan": asdict(self.plan), "seed": arguments.seed,
            "parameters": sum(p.numel() for p in self.model.parameters()), "products": products,
            "torch": torch.__version__, "bytes_per_token": self.data.bytes_per_token,
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            "text": {"domains": {k: {x: y for x, y in v.items() if x != "packages"}
                                 for k, v in tokens.card.get("domains", {}).items()},
                     "training_tokens": len(self.data.training), "tokens": len(tokens.tokens),
                     "held_out_documents": int(tokens.held_out.sum()), "documents": len(tokens.held_out)},
        }
        self.seed = arguments.seed
        self.full_windows = self.data.held_out_windows(self.plan.held_out_windows, self.shape.context)
        self.few_windows = {k: v[:: max(1, len(v) // self.plan.tuning_windows)]
                            for k, v in self.full_windows.items()}
        say(f"{self.summary['parameters'] / 1e6:.0f} M parameters on {self.summary['device']}, {products} products,",
            f"{len(tokens.tokens) / 1e6:.1f} M tokens of {self.data.bytes_per_token:.2f} bytes")

    def write_summary(self) -> None:
        self.summary["seconds"] = round(time.monotonic() - START, 1)
        (self.out / "summary.json").write_text(json.dumps(self.summary, indent=1) + "\n")

    def sync(self) -> None:
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()

    def autocast(self):
        return self.torch.autocast(self.device.type, dtype=self.torch.bfloat16, enabled=self.device.type == "cuda")

    def optimizer(self, rate: float):
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        vectors = [p for p in self.model.parameters() if p.dim() == 1]
        return self.torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
            lr=rate, betas=(0.9, 0.95), fused=self.device.type == "cuda")

    def step(self, optimizer, generator, restriction=None):
        """One step; the loss of language alone, not yet read back from the device."""
        batch = self.data.batch(generator, self.plan.batch, self.shape.context)
        with self.autocast():
            logits, choices = self.call(batch[:, :-1], restriction)
            language = self.torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        balance = sum(chosen.balance for chosen in choices) / len(choices)
        (language + self.plan.balance * balance).backward()
        self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return language.detach(), balance.detach()

    def evaluate(self, windows, restriction=None, placement=None) -> dict:
        """Held-out loss per token (mean over domains, and by domain) and the fan-out of a placement."""
        torch = self.torch
        losses, fan_outs = {}, []
        with torch.no_grad(), self.autocast():
            for name, tokens in windows.items():
                parts = []
                for part in tokens.split(self.plan.batch):
                    logits, choices = self.call(part[:, :-1], restriction)
                    parts.append(torch.nn.functional.cross_entropy(
                        logits.flatten(0, 1).float(), part[:, 1:].flatten(), reduction="sum"))
                    if placement is not None:
                        for layer, chosen in enumerate(choices):
                            fan_outs.append(self.distinct(placement[layer], chosen.experts))
                losses[name] = torch.stack(parts).sum() / tokens[:, 1:].numel()
        by_domain = {name: float(loss) for name, loss in losses.items()}
        loss = sum(by_domain.values()) / len(by_domain)
        return {"loss": loss, "bits_per_byte": loss / math.log(2) / self.data.bytes_per_token,
                "by_domain": by_domain, "fan_out": float(torch.stack(fan_outs).mean()) if fan_outs else None}

    def distinct(self, device_of, experts):
        """Mean number of distinct devices of a token's experts."""
        hit = self.torch.zeros(experts.shape[0], NUM_DEVICES, device=self.device)
        return hit.scatter_(1, device_of[experts], 1.0).sum(1).mean()

    def train(self, until: float) -> None:
        """Trains until a time. The rate rises over the first 4 percent and falls as a cosine to a
        twentieth, by the time that has passed."""
        plan = self.plan
        generator = self.torch.Generator(self.device).manual_seed(self.seed)
        optimizer = self.optimizer(plan.learning_rate)
        began = time.monotonic()
        steps, losses, next_report, recorded = 0, [], 0.0, False
        with open(self.out / "losses.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["seconds", "steps", "tokens", "training_loss", "balance", "held_out_loss",
                           "held_out_bits_per_byte"])
            while True:
                if steps % 5 == 0:
                    self.sync()
                done = (time.monotonic() - began) / max(1e-9, until - began)
                if done >= next_report or done >= 1.0:
                    held_out = self.evaluate(self.few_windows)
                    loss = float(self.torch.stack([a for a, _ in losses]).mean()) if losses else math.nan
                    balance = float(self.torch.stack([b for _, b in losses]).mean()) if losses else math.nan
                    losses.clear()
                    rows.writerow([f"{time.monotonic() - began:.1f}", steps,
                                   steps * plan.batch * self.shape.context, f"{loss:.4f}", f"{balance:.4f}",
                                   f"{held_out['loss']:.4f}", f"{held_out['bits_per_byte']:.4f}"])
                    file.flush()
                    say(f"step {steps}: training {loss:.3f}, balance {balance:.3f}, held out "
                        f"{held_out['loss']:.3f} ({held_out['bits_per_byte']:.3f} bits per byte)")
                    next_report += 0.05
                if done >= 1.0:
                    break
                if done > 0.6 and not recorded:  # something to keep, should the machine go away
                    recorded = True
                    self.record("trace.npz", plan.sequences)
                rate = min(1.0, done / 0.04) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))
                for group in optimizer.param_groups:
                    group["lr"] = plan.learning_rate * rate
                losses.append(self.step(optimizer, generator))
                steps += 1
        self.sync()
        took = time.monotonic() - began
        self.summary["training"] = {
            "seconds": round(took, 1), "steps": steps, "tokens": steps * plan.batch * self.shape.context,
            "epochs": steps * plan.batch * self.shape.context / len(self.data.training)}
        self.seconds_per_step = took / max(1, steps)
        self.summary["held_out"] = self.evaluate(self.full_windows)
        say("held out, all windows:", {k: v for k, v in self.summary["held_out"].items() if k != "by_domain"})
        self.write_summary()

    def record(self, name: str, count: int) -> None:
        """Routing on held-out documents in the archive that `coterie trace import` reads."""
        torch = self.torch
        length = self.plan.sequence_tokens
        sequences = self.data.sequences(count, length)
        if not sequences:
            say("no held-out document is long enough to record")
            return
        tokens = torch.from_numpy(np.stack([s for _, _, s in sequences])).to(self.device)
        experts, weights = [], []
        with torch.no_grad(), self.autocast():
            for part in tokens.split(self.plan.batch):
                _, choices = self.call(part)
                experts.append(torch.stack([c.experts for c in choices], 1).cpu())
                weights.append(torch.stack([c.weights for c in choices], 1).float().cpu())
        # Weights keep the 8 leading bits of their fraction: the file is a third as long.
        bits = (torch.cat(weights).numpy().view(np.uint32) + 0x4000) & np.uint32(0xFFFF8000)
        np.savez_compressed(
            self.out / name,
            routed_experts=torch.cat(experts).numpy().astype(np.int32),  # [tokens, layers, k]
            topk_weights=bits.view(np.float32),
            seq_len=np.full(len(sequences), length, dtype=np.int32),
            layers=np.arange(1, self.shape.num_moe_layers + 1, dtype=np.int32),
            num_experts=np.int32(self.shape.num_experts),
            domain=np.array([domain for domain, _, _ in sequences]),
            document=np.array([document for _, document, _ in sequences], dtype=np.int64),
        )
        say(f"recorded {len(sequences)} sequences of {length} tokens in {name}")

    def learn(self) -> None:
        """The placement, the experts' likeness and the statistics, from training text."""
        torch = self.torch
        shape = self.shape
        layers, number = shape.num_moe_layers, shape.num_experts
        pairs = torch.zeros(layers, number, number, device=self.device)
        products = torch.zeros(layers, number, number, device=self.device)
        generator = torch.Generator(self.device).manual_seed(self.seed + 1)
        seen = 0
        with torch.no_grad(), self.autocast():
            while seen < self.plan.learn_tokens:
                batch = self.data.batch(generator, self.plan.batch, shape.context)[:, :-1]
                _, choices = self.call(batch)
                seen += batch.numel()
                with torch.autocast(self.device.type, enabled=False):
                    for layer, chosen in enumerate(choices):
                        hits = torch.zeros(batch.numel(), number, device=self.device)
                        hits.scatter_(1, chosen.experts, 1.0)
                        weights = torch.zeros_like(hits).scatter_(1, chosen.experts, chosen.weights.float())
                        pairs[layer] += hits.T @ hits
                        products[layer] += weights.T @ weights
        norm = products.diagonal(dim1=1, dim2=2).sqrt()
        self.similarity = products / (norm[:, :, None] * norm[:, None, :]).clamp_min(1e-12)
        coactivation = pairs.cpu().numpy()
        learnt = np.stack([learn_placement(matrix, NUM_DEVICES) for matrix in coactivation])
        self.placement = torch.from_numpy(learnt).to(self.device)
        contiguous = torch.arange(number, device=self.device).div(number // NUM_DEVICES, rounding_mode="floor")
        size, k = number // NUM_DEVICES, shape.num_topk
        uniform = NUM_DEVICES * (1 - math.comb(number - size, k) / math.comb(number, k))
        load = pairs.diagonal(dim1=1, dim2=2)
        on_device = torch.zeros(layers, NUM_DEVICES, device=self.device).scatter_add_(1, self.placement, load)
        self.summary["collaboration"] = {
            "learnt_from_tokens": seen, "devices": NUM_DEVICES, "fan_out_uniform": uniform,
            "fan_out_contiguous": self.evaluate(self.few_windows, None, contiguous.expand(layers, -1))["fan_out"],
            "fan_out_learnt": self.evaluate(self.few_windows, None, self.placement)["fan_out"],
            "expert_load_max_over_mean": (load.max(1).values / load.mean(1)).tolist(),
            "device_load_max_over_mean": (on_device.max(1).values / on_device.mean(1)).tolist()}
        say("collaboration:", {k: v for k, v in self.summary["collaboration"].items() if k.startswith("fan")})
        (self.out / "placement.json").write_text(json.dumps({
            "num_devices": NUM_DEVICES,
            "device_of_expert": {str(layer + 1): devices.tolist() for layer, devices in enumerate(learnt)}}) + "\n")
        self.write_summary()

    def prune(self) -> None:
        """Fine-tunes under every restriction and without, for every seed, from the same model."""
        torch = self.torch
        restrictions = {("none", NUM_DEVICES): None}
        for budget in BUDGETS:
            for method in METHODS:
                restrictions[method, budget] = self.models.Restriction(
                    method, budget, NUM_DEVICES, self.placement, self.similarity)
        begin = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
        before = {key: self.evaluate(self.few_windows, restriction, self.placement)
                  for key, restriction in restrictions.items()}
        self.summary["pruning_before"] = {f"{m} {b}": row for (m, b), row in before.items()}
        say("before fine-tuning:", {key: (round(row["loss"], 4), round(row["fan_out"], 3))
                                    for key, row in before.items()})
        # All runs take equally many steps. The restriction's own work makes a step somewhat longer.
        runs = self.seeds * len(restrictions)
        self.sync()
        clock = time.monotonic()
        self.evaluate(self.few_windows, None, self.placement)
        per_evaluation = time.monotonic() - clock
        left = self.deadline - time.monotonic() - 0.02 * self.seconds
        steps = max(3, int((left / runs - per_evaluation) / (1.25 * self.seconds_per_step)))
        say(f"{runs} runs of {steps} steps")
        longest = 0.0
        self.summary["pruning_after"] = []
        with open(self.out / "pruning.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["seed", "method", "devices", "steps", "tokens", "loss_before", "loss_after",
                           "bits_per_byte_before", "bits_per_byte_after", "fan_out_before", "fan_out_after",
                           "unpruned_fan_out_after"])
            for seed in range(self.seeds):
                for (method, budget), restriction in restrictions.items():
                    clock = time.monotonic()
                    if clock + longest > self.deadline:
                        say("out of time: the remaining fine-tunes are left out")
                        return
                    with torch.no_grad():
                        for name, parameter in self.model.named_parameters():
                            parameter.copy_(begin[name])
                    generator = torch.Generator(self.device).manual_seed(1000 + seed)
                    optimizer = self.optimizer(self.plan.tuning_rate)
                    for step in range(steps):
                        done = step / steps
                        rate = min(1.0, (step + 1) / max(1.0, 0.1 * steps)) * 0.5 * (1 + math.cos(math.pi * done))
                        for group in optimizer.param_groups:
                            group["lr"] = self.plan.tuning_rate * rate
                        self.step(optimizer, generator, restriction)
                    after = self.evaluate(self.few_windows, restriction, self.placement)
                    free = after if restriction is None else self.evaluate(
                        {name: tokens[::4] for name, tokens in self.few_windows.items()}, None, self.placement)
                    was = before[method, budget]
                    rows.writerow([seed, method, budget, steps, steps * self.plan.batch * self.shape.context,
                                   *(f"{x:.5f}" for x in (
                                       was["loss"], after["loss"], was["bits_per_byte"], after["bits_per_byte"],
                                       was["fan_out"], after["fan_out"], free["fan_out"]))])
                    file.flush()
                    self.summary["pruning_after"].append(
                        {"seed": seed, "method": method, "devices": budget, "by_domain": after["by_domain"]})
                    self.write_summary()
                    longest = max(longest, time.monotonic() - clock)
                    say(f"seed {seed}, {method} {budget}: loss {was['loss']:.4f} -> {after['loss']:.4f}, "
                        f"fan-out {was['fan_out']:.3f} -> {after['fan_out']:.3f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="corpus to tokens")
    prepare.add_argument("corpus", type=Path)
    prepare.add_argument("-o", "--output", type=Path, required=True)
    prepare.add_argument("--vocabulary", type=int, default=4096)
    run = commands.add_parser("run", help="train, record, prune")
    run.add_argument("tokens", type=Path)
    run.add_argument("-o", "--output", type=Path, required=True)
    run.add_argument("--seconds", type=float, default=280, help="wall time of everything (default 280)")
    run.add_argument("--size", choices=sorted(PLANS), default="small")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--seeds", type=int, default=3, help="fine-tunes per restriction (default 3)")
    run.add_argument("--device", help="cuda or cpu (default: cuda where there is one)")
    run.add_argument("--products", choices=["grouped", "padded"],
                     help="how experts multiply (default: grouped where that works)")
    run.add_argument("--compile", action="store_true", help="with torch.compile")
    arguments = parser.parse_args()
    if arguments.command == "prepare":
        tokens = text.prepare(arguments.corpus, arguments.vocabulary)
        text.write_tokens(tokens, arguments.output)
        say(f"{len(tokens.tokens) / 1e6:.1f} M tokens, {tokens.num_bytes.sum() / len(tokens.tokens):.2f} bytes each, "
            f"vocabulary {tokens.vocabulary}, {arguments.output.stat().st_size / 1e6:.1f} MB")
        return 0
    run = Run(arguments)
    run.train(START + 0.55 * arguments.seconds)
    run.record("trace.npz", run.plan.sequences)
    run.record("trace_large.npz", run.plan.large_sequences)
    run.learn()
    run.prune()
    run.write_summary()
    say("done")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
