"""What `scheme: auto` chose, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from edgetune.report.schema import Report
from edgetune.report.words import megabytes, nats


def allocation_lines(report: Report) -> Iterator[str]:
    """How many modules have which width, what protecting costs, and what a miss would take."""
    chosen = report.allocation
    if chosen is None:
        return
    counts = Counter(module.width for module in chosen.modules)
    widths = ", ".join(f"{count} × {width}" for width, count in sorted(counts.items()))
    own, plain = chosen.predicted, chosen.plain
    more = own.graph_bytes / plain.graph_bytes - 1
    reads = own.bytes_per_token / plain.bytes_per_token - 1
    yield (
        f"{chosen.scheme}: {widths}; predicted against {plain.width} everywhere "
        f"({megabytes(plain.graph_bytes)} MB, KL {nats(plain.kl_mean)}): {more:+.1%} of the graph, "
        f"{reads:+.1%} read for a token"
    )
    met = [made.graph_bytes for made in chosen.tries if made.met]
    tries = ", ".join(
        f"{megabytes(made.graph_bytes)} MB ({'met' if made.met else 'missed'})"
        for made in chosen.tries
    )
    yield f"{chosen.scheme}: built and verified: {tries}"
    if not met and chosen.would_take:
        yield f"{chosen.scheme}: {chosen.would_take}"
