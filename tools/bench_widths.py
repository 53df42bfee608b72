"""How fast a product is at each width: MatMulNBits alone, as the packages have it, on this machine.

    python tools/bench_widths.py

Several matrices in a row, so that no cache holds them; one row of activations (decode) and 128
(prefill); every width once a round, in turn. Weights are random: no figure here is of fidelity.
`auto` does without four bits in groups of 16 because of this table.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parent))
from paired import spread

MATRICES = 6
RUNS = {1: 100, 128: 4}


def session(bits: int, group_size: int, size: int, threads: int) -> onnxruntime.InferenceSession:
    """`MATRICES` square products, one after the other, activations rounded to 8 bits."""
    random, groups = np.random.default_rng(0), size // group_size
    nodes, weights = [], []
    for number in range(MATRICES):
        packed = random.integers(0, 256, (size, groups, group_size * bits // 8), dtype=np.uint8)
        scales = random.random((size, groups), dtype=np.float32) * 0.01
        weights += [
            numpy_helper.from_array(packed, f"packed{number}"),
            numpy_helper.from_array(scales, f"scales{number}"),
        ]
        nodes.append(
            helper.make_node(
                "MatMulNBits",
                [f"x{number}", f"packed{number}", f"scales{number}"],
                [f"x{number + 1}"],
                domain="com.microsoft", K=size, N=size, bits=bits, block_size=group_size,
                accuracy_level=4,
            )
        )  # fmt: skip
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size])
        for name in ("x0", f"x{MATRICES}")
    ]
    graph = helper.make_graph(nodes, "products", ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def milliseconds(opened: onnxruntime.InferenceSession, size: int, rows: int) -> float:
    """Of one product; a run before it warms up."""
    given = {"x0": np.random.default_rng(1).random((rows, size), dtype=np.float32)}
    opened.run(None, given)
    started = time.perf_counter()
    for _ in range(RUNS[rows]):
        opened.run(None, given)
    return (time.perf_counter() - started) / (RUNS[rows] * MATRICES) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    size = options.size
    opened = {
        (bits, group_size): session(bits, group_size, size, options.threads)
        for bits in (4, 8)
        for group_size in (16, 32, 64, 128, 256)
    }
    found: dict[tuple[int, int, int], list[float]] = {
        (*width, rows): [] for width in opened for rows in RUNS
    }
    for number in range(options.rounds):
        for width, one in list(opened.items())[:: 1 if number % 2 == 0 else -1]:
            for rows in RUNS:
                found[*width, rows].append(milliseconds(one, size, rows))
    print(f"{size} x {size}, {options.threads} threads, {options.rounds} rounds\n")
    print("| width | bytes a weight | decode, ms | GB/s | prefill, ms | decode, prefill ÷ w4-g32 |")
    print("|---|---:|---:|---:|---:|---:|")
    for bits, group_size in opened:
        decode, prefill = (found[bits, group_size, rows] for rows in RUNS)
        ratios = [
            spread([a / b for a, b in zip(own, found[4, 32, rows], strict=True)], ".2f")
            for own, rows in ((decode, 1), (prefill, 128))
        ]
        stored = bits / 8 + 1 / group_size
        speed = size * size * stored / statistics.median(decode) / 1e6
        cells = [
            f"w{bits}-g{group_size}", f"{stored:.3f}", spread(decode, ".3f"), f"{speed:.1f}",
            spread(prefill, ".2f"), ", ".join(ratios),
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
