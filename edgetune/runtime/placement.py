"""Which execution provider took which node of a graph, asked of ONNX Runtime itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgetune.runtime.session import OpenPackage

# onnxruntime's session option that keeps the assignment for get_provider_graph_assignment_info.
_RECORD = "session.record_ep_graph_assignment_info"


def placement(opened: OpenPackage) -> Mapping[str, Any]:
    """{requested, used, coverage, nodes, reason} of the variant's decoder graph.

    `coverage` is the share of the optimized graph's nodes that the requested provider took, null
    with a reason where ONNX Runtime does not say. Opens the graph a second time.
    """
    requested = opened.variant.provider
    facts = {"requested": [requested], "used": [opened.provider]}
    try:
        counts = _nodes_by_provider(opened)
    except (AttributeError, RuntimeError, ValueError, NotImplementedError) as why:
        reason = f"ONNX Runtime does not tell: {(str(why).splitlines() or [''])[0][:200]}"
        return {**facts, "coverage": None, "nodes": {}, "reason": reason}
    total = sum(counts.values())
    if not total:
        return {**facts, "coverage": None, "nodes": {}, "reason": "ONNX Runtime named no node"}
    return {
        "requested": [requested],
        "used": sorted(counts),
        "coverage": counts.get(requested, 0) / total,
        "nodes": counts,
        "reason": None,
    }


def _nodes_by_provider(opened: OpenPackage) -> dict[str, int]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(_RECORD, "1")
    options.intra_op_num_threads = opened.threads
    options.log_severity_level = 3
    graph = opened.variant.folder / str(opened.config["model"]["decoder"]["filename"])
    session = onnxruntime.InferenceSession(str(graph), options, providers=[opened.variant.provider])
    counts: dict[str, int] = {}
    for part in session.get_provider_graph_assignment_info():
        counts[part.ep_name] = counts.get(part.ep_name, 0) + len(part.get_nodes())
    return dict(sorted(counts.items()))
