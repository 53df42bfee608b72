"""In words: which merge was taken and why, and in which modules the fine-tune was lost."""

from __future__ import annotations

from collections.abc import Iterator

from edgetune.report.questions import DROP
from edgetune.report.schema import MergeCandidate, ModuleSurvival, Report
from edgetune.report.verdict import Judgement
from edgetune.report.words import nats, percent

_NAMED = 3


def where_it_was_lost(report: Report, judgement: Judgement) -> Iterator[str]:
    """The modules to look at where a check of the fine-tune failed: by their weights, and by what
    each costs alone where they were run. Nothing where none failed or nothing is known of them."""
    failed = (c.name for c in judgement.checks if c.verdict == "fail")
    if not any(name in ("retention", "kl_mean") or name.endswith(DROP) for name in failed):
        return
    modules = report.survival.modules if report.survival else []
    by_weights = sorted((m for m in modules if m.snr is not None), key=lambda m: m.snr or 0.0)
    # Noise has no direction, and a fine-tune below it can survive: said of a failed report only.
    if erased := [module for module in by_weights if is_below_noise(module)]:
        yield (
            f"erased in: {_names(erased)}: the quantization's noise is larger than the change that "
            f"the fine-tune made ({len(erased)} of {len(modules)} modules)"
        )
    elif by_weights:
        yield f"least is left in: {_names(by_weights)}"
    check = judgement.of("retention")
    limit = check.limit if check else 1.0
    lost = [m for m in modules if m.retention is not None and m.retention.value < limit]
    if lost:
        worst = ", ".join(f"{m.name} {_kept(m)}" for m in lost[:_NAMED])
        more = " …" if len(lost) > _NAMED else ""
        yield (
            f"each quantized alone, these keep less than the limit: {worst}{more} "
            f"({len(lost)} of {len(modules)} modules)"
        )


def is_below_noise(module: ModuleSurvival) -> bool:
    """The fine-tune's change is smaller than what quantization adds to it."""
    return module.snr is not None and module.snr < 1


def _kept(module: ModuleSurvival) -> str:
    value = module.retention.value if module.retention else 0.0
    return percent(value) if value >= 0 else "nothing"


def survival_rows(report: Report, most: int = 10) -> list[tuple[str, ...]]:
    """Module, ‖Δ‖/‖W‖, step, share below half a step, signal to noise, KL and retention alone: the
    worst first."""
    modules = report.survival.modules if report.survival else []
    return [
        (
            module.name,
            "–" if module.delta_relative is None else percent(module.delta_relative, 2),
            f"{module.step:.2g}",
            percent(module.below_step),
            "–" if module.snr is None else f"{module.snr:.2f}",
            nats(module.kl_mean.value) if module.kl_mean else "not measured",
            percent(module.retention.value) if module.retention else "not measured",
        )
        for module in modules[:most]
    ]


SURVIVAL_COLUMNS = (
    "module",
    "change",
    "step",
    "below half a step",
    "signal to noise",
    "KL alone",
    "retention alone",
)


def certificate_lines(report: Report) -> Iterator[str]:
    """How far the merge is from the trained model; where two were compared, both."""
    certificate = report.merge.certificate if report.merge else None
    if certificate is None:
        return
    several = len(certificate.candidates) > 1
    for candidate in certificate.candidates:
        taken = several and candidate.onto == certificate.chosen
        yield f"{_merge_in_words(candidate)}{'; taken' if taken else ''}"


def _merge_in_words(candidate: MergeCandidate) -> str:
    name = f"onto the {candidate.onto} base" if candidate.onto else "the merged checkpoint"
    return (
        f"{name}: KL from the trained model {nats(candidate.kl_mean.value)} nats, top-1 agreement "
        f"{percent(candidate.top1_agreement.value, 2)}, logits within "
        f"{candidate.parity_max_abs:.1e} of the {candidate.parity_against}"
    )


def _names(modules: list[ModuleSurvival]) -> str:
    text = ", ".join(module.name for module in modules[:_NAMED])
    return f"{text} …" if len(modules) > _NAMED else text
