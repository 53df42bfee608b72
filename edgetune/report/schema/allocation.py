"""How the widths of a package's modules were chosen, and what protecting them costs."""

from __future__ import annotations

from edgetune.report.schema.part import Count, Part


class AllocatedModule(Part):
    """A module's width, and KL(trained ‖ it alone stored so) on calibration text, nats a token."""

    name: str
    width: str
    bytes: Count
    kl_alone: float


class AllocationFigures(Part):
    """Predicted from shapes and sensitivities, never measured."""

    # model.onnx and its data.
    graph_bytes: Count
    # What one token reads of the quantized matrices: speed is predicted by it alone.
    bytes_per_token: Count
    kl_mean: float


class PlainFigures(AllocationFigures):
    """The same with every module at one width: what protecting is compared with."""

    width: str


class AllocationTry(Part):
    """One allocation that was built and validated."""

    graph_bytes: Count
    kl_predicted: float
    # Its upper bound, in units of `wanted_kl`: the check that is nearest to its limit counts.
    kl_verified_bound: float
    met: bool
    missed: list[str]


class ChosenWidths(Part):
    """What `scheme: auto` chose."""

    scheme: str
    modules: list[AllocatedModule]
    predicted: AllocationFigures
    plain: PlainFigures
    # The largest KL that the tolerances allow; null where a size was asked for.
    wanted_kl: float | None
    graph_bytes_budget: int | None
    tries: list[AllocationTry]
    # Of a nearest miss, in words; null where the tolerances are met.
    would_take: str | None
