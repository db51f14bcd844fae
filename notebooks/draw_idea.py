"""Draws figures/00_idea: one token's way under three dispatches, the picture on top of the README.

  python notebooks/draw_idea.py
"""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

import coterie_figures as cf

# Four ranks with four experts each; a token of rank 0 chose six of them (filled). The third panel
# holds the same experts, placed so that those which are often chosen together share a rank.
CONTIGUOUS = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
PLACED = [[0, 4, 11, 15], [1, 5, 8, 12], [2, 6, 9, 13], [3, 7, 10, 14]]
CHOSEN = [1, 5, 6, 8, 9, 12]
RANK_X, RANK_WIDTH, CELL = 5.2, 4.3, 0.86


def draw_ranks(axis, ranks) -> None:
    for rank, experts in enumerate(ranks):
        y = 3 - rank
        axis.add_patch(FancyBboxPatch((RANK_X, y - 0.33), RANK_WIDTH, 0.66, boxstyle="round,pad=0.04",
                                      facecolor="white", edgecolor="0.45"))
        axis.text(RANK_X + RANK_WIDTH + 0.2, y, f"rank {rank}", va="center", fontsize=8, color="0.35")
        for place, expert in enumerate(experts):
            chosen = expert in CHOSEN
            axis.text(RANK_X + 0.75 + place * (CELL + 0.1), y, f"E{expert}", ha="center", va="center", fontsize=8,
                      color="white" if chosen else "0.5", fontweight="bold" if chosen else "normal",
                      bbox=dict(boxstyle="round,pad=0.25", facecolor=cf.BLUE if chosen else "0.93", edgecolor="none"))


def draw(axis, title: str, ranks, per_expert: bool, caption: str) -> None:
    draw_ranks(axis, ranks)
    axis.text(0.55, 1.5, "token\nof rank 0", ha="center", va="center", fontsize=8.5,
              bbox=dict(boxstyle="round,pad=0.35", facecolor=cf.YELLOW, edgecolor="0.4"))
    for rank, experts in enumerate(ranks):
        hits = sum(expert in CHOSEN for expert in experts)
        copies = hits if per_expert else min(hits, 1)
        for copy in range(copies):
            spread = 0.17 * (copy - (copies - 1) / 2)
            axis.add_patch(FancyArrowPatch(
                (1.35, 1.5 + spread), (RANK_X - 0.1, 3 - rank + spread), arrowstyle="-|>", mutation_scale=9,
                linewidth=1.4, color="0.55" if rank == 0 else cf.VERMILLION,
                linestyle=":" if rank == 0 else "-"))
    axis.set_title(title, fontsize=10, fontweight="bold", loc="left")
    axis.text(0.0, -0.85, caption, fontsize=9)
    axis.set_xlim(-0.4, 11.4)
    axis.set_ylim(-1.1, 3.6)
    axis.axis("off")


def main() -> None:
    figure, axes = plt.subplots(1, 3, figsize=(12.5, 2.9))
    draw(axes[0], "standard: a copy per expert", CONTIGUOUS, True, "6 copies, 5 of them over a link")
    draw(axes[1], "dedup: a copy per rank", CONTIGUOUS, False, "fan-out 4, remote fan-out 3")
    draw(axes[2], "dedup + collaboration placement", PLACED, False, "fan-out 2, remote fan-out 2")
    figure.tight_layout(w_pad=1.0)
    cf.save(figure, "00_idea")


if __name__ == "__main__":
    main()
