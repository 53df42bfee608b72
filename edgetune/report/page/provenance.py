"""Where the package and the figures come from: inputs, licenses, versions, seeds, machine."""

from __future__ import annotations

from collections.abc import Iterator

from edgetune.report.page.elements import Markup, fold, foreign, join, pairs, table, tag
from edgetune.report.page.shown import Shown
from edgetune.report.schema import License, Report, SourceModel
from edgetune.report.words import (
    carried_note,
    double_bos_note,
    normalization_note,
    what_was_emulated,
)


def provenance(shown: Shown, level: str, below: str) -> Markup:
    """What went in, under which terms, and on what it was measured."""
    report, title = shown.report, shown.title
    parts = [tag(level, "Where it comes from"), tag(below, "Inputs and licenses")]
    found = report.provenance
    if found is None:
        parts.append(tag("p", "Not known: the report was made by a version without it."))
    else:
        columns = ("input", "name", "license", "digest of its files")
        parts.append(table(f"{title}: inputs", columns, list(_inputs(report)), "text"))
        seeds = ", ".join(f"{name} {seed}" for name, seed in found.seeds.items()) or "none"
        steps = [(f"step {name}", tag("code", key)) for name, key in found.steps.items()]
        parts.append(pairs([("seeds of the build", seeds), *steps]))
        files = [
            (join([f"{what} ", foreign(name)]), tag("code", digest))
            for what, model in _models(report)
            for name, digest in model.files.items()
        ]
        caption = f"{title}: SHA-256 of every input file"
        parts.append(
            fold(f"{len(files)} input files", table(caption, ("file", "SHA-256"), files, "text"))
        )
        parts.append(
            fold("Versions that built it", pairs((n, v or "–") for n, v in found.versions.items()))
        )
    parts += [tag(below, "Measurement"), pairs(_measurement(report))]
    if report.steps:
        rows = [
            (s.name, f"{s.seconds:.1f}", _memory(s.peak_rss_mb), "yes" if s.cached else "no")
            for s in report.steps
        ]
        columns = ("step", "seconds", "peak memory, MB", "taken from an earlier build")
        parts.append(
            fold(
                "What the build’s steps cost", table(f"{title}: what the steps cost", columns, rows)
            )
        )
    return tag("section", *parts)


def _memory(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.0f}"


def _models(report: Report) -> Iterator[tuple[str, SourceModel]]:
    found = report.provenance
    if found is None:
        return
    for what, model in (("base", found.base), ("base before", found.base_before)):
        if model is not None:
            yield what, model
    for number, model in enumerate(found.adapters, 1):
        yield ("adapter" if len(found.adapters) == 1 else f"adapter {number}"), model


def _inputs(report: Report) -> Iterator[list[str]]:
    for what, model in _models(report):
        at = f" at {model.commit[:12]}" if model.commit else ""
        yield [what, foreign(f"{model.name}{at}"), license_words(model.license),
               tag("code", model.digest[:16])]  # fmt: skip
    data = report.provenance.data if report.provenance else {}
    for name, digest in data.items():
        cell = tag("code", digest[:16]) if digest else "none was given"
        yield [f"{name} data", "–", "–", cell]


def license_words(license: License | None) -> str:
    """`apache-2.0 (README.md)`, or "not stated" with the reason."""
    if license is None:
        return "not known: the package was built by a version without it"
    if license.name is None:
        return f"not stated ({license.reason or 'no reason was given'})"
    return join([foreign(license.name), f" ({license.source})"])


def _measurement(report: Report) -> Iterator[tuple[str, str]]:
    environment = report.environment
    extra = environment.model_extra or {}
    machine = [str(extra[key]) for key in ("cpu", "arch", "os") if extra.get(key)]
    if isinstance(cores := extra.get("cores"), int):
        machine.append(f"{cores} cores")
    if isinstance(memory := extra.get("memory_bytes"), int):
        machine.append(f"{memory / 1e9:.1f} GB")
    yield "machine", ", ".join([*machine, f"fingerprint {environment.fingerprint}"])
    yield "threads", str(environment.threads)
    versions = environment.versions.items()
    yield "versions", ", ".join(f"{name} {version}" for name, version in versions if version)
    providers = report.providers
    covered = "not measured" if providers.coverage is None else f"{100 * providers.coverage:.0f} %"
    yield "execution providers", f"{', '.join(providers.used)}; coverage of the graph {covered}"
    if sampling := report.sampling:
        seed = f"bootstrap seed {sampling.seed}, {sampling.resamples} resamples"
        text = "" if sampling.text_seed is None else f"; sampled text: seed {sampling.text_seed}"
        yield "chance", seed + text
    evidence = report.evidence
    shown = [
        f"{name.replace('_', ' ')}: {'yes' if held else 'no'}" for name, held in evidence.items()
    ]
    yield "evidence", ", ".join(shown)
    for name, note in (
        ("data", carried_note(report)),
        ("tokenizer", normalization_note(report)),
        ("chat template", double_bos_note(report)),
        ("emulated", what_was_emulated(report)),
    ):
        if note:
            yield name, f"{note}."
