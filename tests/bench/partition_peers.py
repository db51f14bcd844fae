"""Partitions the experts of layers with Mt-KaHyPar and METIS, for bench_place.

    python partition_peers.py PEER FOLDER NUM_RANKS

PEER is mt_kahypar (package mtkahypar: tokens are hyperedges, the objective km1 is fan-out minus one)
or metis (package pymetis: the co-activation graph, the objective is the weight of cut edges).
FOLDER/tokens_I.txt holds layer I: a line "num_experts num_topk", then the ids of one token per line.
FOLDER/PEER.json gets the placement as a physical_to_logical_map; the seconds spent partitioning go to
standard output. Exit code 3: the package is not installed.

Neither tool promises parts of exactly equal numbers of experts. Parts that are too large give the
expert that loses least (in co-activation weight) to a part that has room.
"""

import json
import pathlib
import sys
import time
from collections import Counter


def read_tokens(path):
    lines = path.read_text().splitlines()
    num_experts, _ = map(int, lines[0].split())
    return num_experts, Counter(tuple(sorted(map(int, line.split()))) for line in lines[1:])


def coactivation(num_experts, tokens):
    weight = [[0] * num_experts for _ in range(num_experts)]
    for token, count in tokens.items():
        for a in token:
            for b in token:
                if a != b:
                    weight[a][b] += count
    return weight


def mt_kahypar(num_experts, num_ranks, tokens):
    import mtkahypar

    global mtk
    if "mtk" not in globals():
        mtk = mtkahypar.initialize(2)
        mtkahypar.set_seed(1)
    context = mtk.context_from_preset(mtkahypar.PresetType.QUALITY)
    context.set_partitioning_parameters(num_ranks, 0.0001, mtkahypar.Objective.KM1)
    context.logging = False
    edges = [list(token) for token in tokens]
    graph = mtk.create_hypergraph(
        context, num_experts, len(edges), edges, [1] * num_experts, list(tokens.values())
    )
    return list(graph.partition(context).get_partition())


def metis(num_experts, num_ranks, tokens):
    import pymetis

    weight = coactivation(num_experts, tokens)
    begin, neighbours, weights = [0], [], []
    for a in range(num_experts):
        for b in range(num_experts):
            if weight[a][b] > 0:
                neighbours.append(b)
                weights.append(weight[a][b])
        begin.append(len(neighbours))
    options = pymetis.Options(seed=1, ncuts=10, niter=50)
    _, parts = pymetis.part_graph(
        num_ranks, xadj=begin, adjncy=neighbours, eweights=weights, options=options, recursive=False
    )
    return list(parts)


def equalise(parts, num_ranks, weight):
    size = len(parts) // num_ranks
    while True:
        counts = Counter(parts)
        full = [p for p in range(num_ranks) if counts[p] > size]
        room = [p for p in range(num_ranks) if counts[p] < size]
        if not full:
            return parts

        def loss(move):
            expert, target = move
            inside = sum(w for f, w in enumerate(weight[expert]) if parts[f] == parts[expert])
            return inside - sum(w for f, w in enumerate(weight[expert]) if parts[f] == target)

        moves = [(e, p) for e in range(len(parts)) if parts[e] in full for p in room]
        expert, target = min(moves, key=lambda move: (loss(move), move))
        parts[expert] = target


def main():
    peer, folder, num_ranks = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])
    try:
        __import__({"mt_kahypar": "mtkahypar", "metis": "pymetis"}[peer])
    except ImportError:
        sys.exit(3)
    solve = {"mt_kahypar": mt_kahypar, "metis": metis}[peer]
    rows, seconds = [], 0.0
    while (path := folder / f"tokens_{len(rows)}.txt").exists():
        num_experts, tokens = read_tokens(path)
        if num_experts % num_ranks:
            sys.exit(f"{path}: found {num_experts} experts on {num_ranks} ranks, expected equal parts")
        start = time.perf_counter()
        parts = solve(num_experts, num_ranks, tokens)
        seconds += time.perf_counter() - start
        parts = equalise(parts, num_ranks, coactivation(num_experts, tokens))
        rows.append([e for p in range(num_ranks) for e in range(num_experts) if parts[e] == p])
    (folder / f"{peer}.json").write_text(json.dumps({"physical_to_logical_map": rows}))
    print(seconds)


if __name__ == "__main__":
    main()
