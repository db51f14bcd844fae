#!/usr/bin/env python3
"""Writes one layer of a recorded routing as the flat file that bench_kernels reads.

    flatten_routing.py law.npz 13 -o law_layer13.bin

The .npz has `routed_experts` int [tokens, layers, k], `topk_weights` float [tokens, layers, k] and
`num_experts`. The flat file: uint32 magic "ROUT", tokens, k, experts; uint16 [tokens][k] expert ids;
float32 [tokens][k] router weights; little endian.
"""

import argparse

import numpy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("npz")
    parser.add_argument("layer_idx", type=int, help="position among the recorded layers")
    parser.add_argument("-o", "--output", required=True)
    arguments = parser.parse_args()
    archive = numpy.load(arguments.npz)
    experts = archive["routed_experts"][:, arguments.layer_idx, :]
    weights = archive["topk_weights"][:, arguments.layer_idx, :]
    header = numpy.array([0x54554F52, *experts.shape, int(archive["num_experts"])], dtype="<u4")
    with open(arguments.output, "wb") as file:
        file.write(header.tobytes())
        file.write(numpy.ascontiguousarray(experts, dtype="<u2").tobytes())
        file.write(numpy.ascontiguousarray(weights, dtype="<f4").tobytes())


if __name__ == "__main__":
    main()
