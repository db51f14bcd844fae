"""A small decoder-only mixture of experts, and the router's restriction to a budget of devices.

Pre-normalised blocks of causal attention with rotary positions and a feed-forward part: dense in the
first block, a mixture of experts in the others. The router takes the softmax over all experts, keeps
the top k and divides their weights by their sum. No token is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Shape:
    vocabulary: int
    num_moe_layers: int = 8  # behind one dense layer, which is layer 0
    hidden: int = 512
    num_heads: int = 8
    num_experts: int = 64
    num_topk: int = 6
    expert_hidden: int = 256
    dense_hidden: int = 1536
    context: int = 512


@dataclass
class Restriction:
    """Occult's collaboration pruning in the forward pass (arXiv 2505.13345, section 4.3).

    A token may use `budget` devices: those of its best experts, taken in the order of their scores.
    `router_score` takes the top k again among the experts of these devices; `similarity` replaces
    each expert outside by the most similar unused one inside, which gets its weight.
    """

    method: str  # router_score | similarity
    budget: int
    num_devices: int
    device_of: torch.Tensor  # int64 [layers, experts]
    similarity: torch.Tensor  # float [layers, experts, experts]

    def choose(self, layer: int, scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Experts [tokens, k] and where each one's weight is read from [tokens, k]."""
        best = scores.topk(k, dim=-1).indices
        device_of = self.device_of[layer]
        device = device_of[best]
        allowed = torch.zeros(scores.shape[0], self.num_devices, dtype=torch.bool, device=scores.device)
        for i in range(k):
            mine = device[:, i : i + 1]
            free = allowed.sum(1, keepdim=True) < self.budget
            allowed.scatter_(1, mine, allowed.gather(1, mine) | free)
        inside = allowed[:, device_of]  # [tokens, experts]
        if self.method == "router_score":
            chosen = scores.masked_fill(~inside, -1.0).topk(k, dim=-1).indices
            return chosen, chosen
        stays = inside.gather(1, best)
        unused = inside.clone()
        unused.scatter_(1, best, unused.gather(1, best) & ~stays)
        chosen = best.clone()
        for i in range(k):
            likeness = self.similarity[layer][best[:, i]].masked_fill(~unused, -1.0)
            substitute = likeness.argmax(1, keepdim=True)
            replaced = ~stays[:, i : i + 1]
            chosen[:, i : i + 1] = torch.where(replaced, substitute, best[:, i : i + 1])
            unused.scatter_(1, substitute, unused.gather(1, substitute) & ~replaced)
        return chosen, best


class Spread(torch.autograd.Function):
    """rows[destination[t, i]] = x[t]; the other rows are zero. Backward adds a token's copies up."""

    @staticmethod
    def forward(ctx, x, destination, num_rows):
        ctx.save_for_backward(destination)
        rows = x.new_zeros(num_rows, x.shape[1])
        return rows.index_copy_(0, destination.flatten(), x.repeat_interleave(destination.shape[1], 0))

    @staticmethod
    def backward(ctx, grad):
        (destination,) = ctx.saved_tensors
        return grad.index_select(0, destination.flatten()).view(*destination.shape, -1).sum(1), None, None


class Gather(torch.autograd.Function):
    """Takes rows[destination]; every row is taken at most once, so that backward needs no addition."""

    @staticmethod
    def forward(ctx, rows, destination):
        ctx.save_for_backward(destination)
        ctx.num_rows = rows.shape[0]
        return rows.index_select(0, destination.flatten())

    @staticmethod
    def backward(ctx, grad):
        (destination,) = ctx.saved_tensors
        rows = grad.new_zeros(ctx.num_rows, grad.shape[1])
        return rows.index_copy_(0, destination.flatten(), grad.contiguous()), None


def grouped_product(rows: torch.Tensor, matrices: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    product = getattr(F, "grouped_mm", None) or torch._grouped_mm
    return product(rows, matrices, offs=ends)


class Experts(nn.Module):
    """The experts of one layer: down(silu(gate(x)) * up(x)).

    `grouped`: one grouped product over rows sorted by expert, groups padded to 8 rows.
    `padded`: one batched product over equal groups as long as the fullest; the rows of an expert
    beyond four times the mean are dropped (seen in training's first steps only).
    """

    ROWS = 8

    def __init__(self, shape: Shape, products: str):
        super().__init__()
        self.products = products
        self.num_experts = shape.num_experts
        self.gate_up = nn.Parameter(torch.empty(shape.num_experts, shape.hidden, 2 * shape.expert_hidden))
        self.down = nn.Parameter(torch.empty(shape.num_experts, shape.expert_hidden, shape.hidden))

    def forward(self, x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor,
                counts: torch.Tensor) -> torch.Tensor:
        flat = experts.flatten()
        slot = torch.empty_like(flat)
        slot[flat.argsort(stable=True)] = torch.arange(flat.numel(), device=flat.device)
        within = slot - (counts.cumsum(0) - counts)[flat]
        gate_up, down = self.gate_up.to(x.dtype), self.down.to(x.dtype)
        if self.products == "grouped":
            padded = (counts + self.ROWS - 1) // self.ROWS * self.ROWS
            num_rows = (flat.numel() + self.ROWS - 1) // self.ROWS * self.ROWS + self.num_experts * self.ROWS
            destination = ((padded.cumsum(0) - padded)[flat] + within).view_as(experts)
            ends = padded.cumsum(0).to(torch.int32)
            ends[-1] = num_rows  # rows that nobody uses are zero and go to the last expert
            rows = Spread.apply(x, destination, num_rows)
            gate, up = grouped_product(rows, gate_up, ends).chunk(2, -1)
            out = grouped_product(F.silu(gate) * up, down, ends)
        else:
            mean = flat.numel() / self.num_experts
            length = min(int(counts.max()), int(4 * mean) + 8)
            length = (length + self.ROWS - 1) // self.ROWS * self.ROWS
            num_rows = self.num_experts * length + flat.numel()
            # Rows without a place go to the end, each to its own, and come back as zero.
            spare = self.num_experts * length + torch.arange(flat.numel(), device=flat.device)
            destination = torch.where(within < length, flat * length + within, spare).view_as(experts)
            rows = Spread.apply(x, destination, num_rows)
            packed = rows[: self.num_experts * length].view(self.num_experts, length, -1)
            gate, up = torch.bmm(packed, gate_up).chunk(2, -1)
            out = torch.bmm(F.silu(gate) * up, down).flatten(0, 1)
            out = torch.cat([out, out.new_zeros(flat.numel(), out.shape[1])])
        copies = Gather.apply(out, destination).view(*experts.shape, -1)
        return (copies * weights.to(copies.dtype).unsqueeze(-1)).sum(1)


@dataclass
class Chosen:
    """What one MoE layer did with the tokens of a pass."""

    experts: torch.Tensor  # int64 [tokens, k], best first
    weights: torch.Tensor  # float32 [tokens, k], sum 1
    balance: torch.Tensor  # the balancing loss: 1 where load is even


class MixtureOfExperts(nn.Module):
    def __init__(self, shape: Shape, layer: int, products: str):
        super().__init__()
        self.layer = layer
        self.num_topk = shape.num_topk
        self.router = nn.Parameter(torch.empty(shape.num_experts, shape.hidden))
        self.experts = Experts(shape, products)

    def forward(self, x: torch.Tensor, restriction: Restriction | None) -> tuple[torch.Tensor, Chosen]:
        with torch.autocast(x.device.type, enabled=False):
            scores = F.linear(x.float(), self.router).softmax(-1)
        with torch.no_grad():
            if restriction is None:
                experts = scores.topk(self.num_topk, dim=-1).indices
                weighed_by = experts
            else:
                experts, weighed_by = restriction.choose(self.layer, scores, self.num_topk)
            num_experts = scores.shape[1]
            counts = torch.zeros(num_experts, dtype=torch.int64, device=x.device)
            counts.scatter_add_(0, experts.flatten(), torch.ones_like(experts.flatten()))
        weights = scores.gather(1, weighed_by)
        weights = weights / weights.sum(-1, keepdim=True)
        balance = num_experts * (counts / experts.numel() * scores.mean(0)).sum()
        return self.experts(x, experts, weights, counts), Chosen(experts, weights.detach(), balance)


class Attention(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.num_heads = shape.num_heads
        self.inputs = nn.Linear(shape.hidden, 3 * shape.hidden, bias=False)
        self.output = nn.Linear(shape.hidden, shape.hidden, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, length, hidden = x.shape
        q, k, v = self.inputs(x).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)

        def rotate(heads: torch.Tensor) -> torch.Tensor:
            a, b = heads.chunk(2, -1)
            return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(heads.dtype)

        out = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        return self.output(out.transpose(1, 2).reshape(batch, length, hidden))


class Block(nn.Module):
    def __init__(self, shape: Shape, moe_layer: int | None, products: str):
        super().__init__()
        self.attention_norm = nn.Parameter(torch.ones(shape.hidden))
        self.forward_norm = nn.Parameter(torch.ones(shape.hidden))
        self.attention = Attention(shape)
        self.moe = None if moe_layer is None else MixtureOfExperts(shape, moe_layer, products)
        if moe_layer is None:
            self.gate_up = nn.Linear(shape.hidden, 2 * shape.dense_hidden, bias=False)
            self.down = nn.Linear(shape.dense_hidden, shape.hidden, bias=False)

    def forward(self, x, cos, sin, dtype, restriction):
        normed = F.rms_norm(x, (x.shape[-1],), self.attention_norm).to(dtype)
        x = x + self.attention(normed, cos, sin)
        normed = F.rms_norm(x, (x.shape[-1],), self.forward_norm).to(dtype)
        if self.moe is None:
            gate, up = self.gate_up(normed).chunk(2, -1)
            return x + self.down(F.silu(gate) * up), None
        out, chosen = self.moe(normed.flatten(0, 1), restriction)
        return x + out.view_as(x), chosen


class SmallMoe(nn.Module):
    def __init__(self, shape: Shape, products: str):
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.hidden)
        self.blocks = nn.ModuleList(
            Block(shape, None if i == 0 else i - 1, products) for i in range(shape.num_moe_layers + 1))
        self.norm = nn.Parameter(torch.ones(shape.hidden))
        half = shape.hidden // shape.num_heads // 2
        angle = torch.outer(torch.arange(shape.context).float(), 10000.0 ** (-torch.arange(half) / half))
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                deep = name.endswith(("down", "down.weight", "output.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * len(self.blocks)) ** 0.5 if deep else 0.02)

    def forward(self, tokens: torch.Tensor, restriction: Restriction | None = None):
        """Logits [batch, length, vocabulary] and what each MoE layer chose."""
        x = self.embedding(tokens)
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        # Products in BF16 under autocast; the residual stream, norms and the router stay in FP32.
        device = tokens.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        choices: list[Chosen] = []
        for block in self.blocks:
            x, chosen = block(x, cos, sin, dtype, restriction)
            if chosen is not None:
                choices.append(chosen)
        return F.linear(F.rms_norm(x, (x.shape[-1],), self.norm), self.embedding.weight), choices


def working_products(device: torch.device) -> str:
    """`grouped` where the grouped product gives what the padded one gives, forward and backward."""
    shape = Shape(vocabulary=16, hidden=64, num_experts=8, num_topk=2, expert_hidden=32)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    x = torch.randn(256, shape.hidden, device=device, dtype=dtype)
    experts = torch.stack([torch.randint(0, 3, (256,)), torch.randint(4, 8, (256,))], 1).to(device)
    counts = torch.zeros(8, dtype=torch.int64, device=device).scatter_add_(
        0, experts.flatten(), torch.ones_like(experts.flatten()))
    weights = torch.rand(256, 2, device=device)
    results = []
    try:
        for products in ("padded", "grouped"):
            torch.manual_seed(1)
            layer = Experts(shape, products).to(device)
            nn.init.normal_(layer.gate_up, std=0.1)
            nn.init.normal_(layer.down, std=0.1)
            inputs = x.clone().requires_grad_()
            out = layer(inputs, experts, weights, counts)
            (out.float() ** 2).sum().backward()
            results.append([out, inputs.grad, layer.gate_up.grad, layer.down.grad])
        for padded, grouped in zip(*results):
            scale = padded.float().abs().max()
            if not (padded.float() - grouped.float()).abs().max() <= 0.03 * scale:
                return "padded"
    except (RuntimeError, AttributeError, NotImplementedError, TypeError):
        return "padded"
    return "grouped"
