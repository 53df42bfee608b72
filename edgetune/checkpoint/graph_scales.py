"""Scales of a graph that are stored in 8 bits: how many of its row's steps each is, multiplied out
by a Cast and a Mul (`optimize.rounding.scales` makes them)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def scales_in_steps(nodes: Iterable[Any], constants: Iterable[str]) -> dict[str, tuple[str, str]]:
    """{name of the scales: (constant of the counts, int8 [outputs, groups]; of the steps, float32
    [outputs, 1])}, of an onnx graph's nodes and the names of its constants."""
    known = set(constants)
    cast = {n.output[0]: n.input[0] for n in nodes if n.op_type == "Cast" and n.input[0] in known}
    return {
        node.output[0]: (cast[node.input[0]], node.input[1])
        for node in nodes
        if node.op_type == "Mul" and node.input[0] in cast and node.input[1] in known
    }
