"""Long texts in words: what was measured at which lengths, and what was not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgetune.report.words import nats, percent

if TYPE_CHECKING:
    from edgetune.report.schema import LongStretch, Report


def long_context_lines(report: Report) -> Iterator[str]:
    """A line for each stretch, and for each length at which nothing was measured; none where the
    model's arithmetic is the same at every length."""
    section = report.long_context
    if section is None:
        return
    for stretch in section.stretches:
        yield f"{about(stretch)}: {_found(stretch, section.kl_kind)}"
    yield from section.not_measured


def about(stretch: LongStretch) -> str:
    """`sliding window of 4096 tokens, after 4081 to 4112`."""
    return f"{stretch.what} of {stretch.at} tokens, after {stretch.first} to {stretch.last}"


def at_least(kl_kind: str) -> str:
    """What stands before a KL that is a lower bound."""
    return "" if kl_kind == "whole vocabulary" else "≥ "


def _found(stretch: LongStretch, kl_kind: str) -> str:
    kl, same = stretch.kl_mean, stretch.top1_agreement
    if kl is None or same is None:
        return f"not measured: {stretch.reason or 'no reason was given'}"
    text = f"KL {at_least(kl_kind)}{nats(kl.value)} nats"
    return f"{text}, top-1 agreement {percent(same.value)} ({stretch.positions} positions)"
