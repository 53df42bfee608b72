"""What a report says of chance: which seeds, so that its figures can be drawn again."""

from __future__ import annotations

from inspect import signature
from typing import Any

from edgetune import statistics
from edgetune.validate.self_test import SelfTest


def describe_sampling(self_test: SelfTest) -> dict[str, Any]:
    """The report's `sampling` section: {seed, resamples} of the bootstrap, which every figure
    leaves at its defaults, and `text_seed` of the text that the trained model sampled; null where
    evaluation data was given."""
    sampled = self_test.facts.get("source") != "evaluation data"
    return {
        "seed": int(signature(statistics.ratio_of_sums).parameters["seed"].default),
        "resamples": statistics.RESAMPLES,
        "text_seed": int(self_test.facts.get("seed") or 0) if sampled else None,
    }
