"""Step 6: the finished package, opened by the runtime a device uses, against its reference.

No torch here: the unconverted model's latency is measured by a child process. `measure_sections`
and all it loads need numpy and onnxruntime-genai alone: a package's `self_test/run.pyz` runs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgetune.checkpoint.header import read_header
from edgetune.checksums import self_test_digest
from edgetune.errors import MissingError, StepFailedError
from edgetune.files import digest_of_json, dump_json, write_text
from edgetune.host import available_memory_bytes, probe_host
from edgetune.report.make import finish_report
from edgetune.runtime.describe import graph_bytes, package_bytes
from edgetune.runtime.manifest import Manifest, choose_variant, read_manifest
from edgetune.runtime.placement import placement
from edgetune.runtime.session import OpenPackage, open_variant
from edgetune.validate.answers import make_answers
from edgetune.validate.checks import make_checks
from edgetune.validate.cost import cost_section
from edgetune.validate.evaluate import evaluate, worst_examples
from edgetune.validate.fidelity import TOP_K_BOUND, WHOLE_VOCABULARY, fidelity
from edgetune.validate.gathered import (
    environment,
    evidence,
    merge_facts,
    read_limits,
    shipped_inputs,
)
from edgetune.validate.job import Job, self_test_folder
from edgetune.validate.latency import make_prompt, measure_latency, not_measured
from edgetune.validate.long_context import long_context
from edgetune.validate.metrics import measure_task
from edgetune.validate.per_item import per_item
from edgetune.validate.privacy import describe_self_test, without_text
from edgetune.validate.provenance import describe_provenance
from edgetune.validate.sampling import describe_sampling
from edgetune.validate.self_test import SelfTest, load_self_test, open_logprobs
from edgetune.validate.survival import run_modules
from edgetune.validate.tokenizer_parity import tokenizer_parity

Progress = Callable[[str], None]

# In the step's folder, which does not ship: private data may be in it.
ANSWERS = "answers.json"
# A weight takes its bytes in torch, and at most one in the package beside it. The rest: libraries.
_DTYPE_BYTES = {"bfloat16": 2, "float32": 4}
_OTHER_BYTES = 1_000_000_000


def validate_step(arguments: Mapping[str, Any], out: Path, progress: Progress) -> dict[str, Any]:
    """Write `report.json` and, item by item, `answers.json` into `out`. Facts: {"verdict",
    "checks": {name: verdict}}.

    arguments: package, device {name, here, threads, arch}, variant, identifier, reference and
    checkpoint (paths or null), private_data (the package does not carry the items), steps, merge
    and survival (facts or null), thorough, evidence, emulation (or null), not_emulated (why, or
    null). Raises InputRefusedError for a package that was changed or does not open,
    StepFailedError when it does not run.
    """
    from edgetune.environments.emulator import emulation_from_json

    progress("checking the package's files")
    manifest = read_manifest(Path(arguments["package"]))
    device, emulation = arguments["device"], arguments.get("emulation")
    job = Job(
        identifier=arguments["identifier"],
        device=device["name"],
        here=bool(device["here"]),
        threads=int(device["threads"]),
        variant=choose_variant(manifest, arguments["variant"], None),
        reference=_path(arguments.get("reference")),
        checkpoint=_path(arguments.get("checkpoint")),
        private_data=bool(arguments.get("private_data")),
        merge=arguments.get("merge"),
        survival=arguments.get("survival"),
        thorough=bool(arguments.get("thorough")),
        evidence=arguments.get("evidence"),
        steps=tuple(arguments.get("steps") or ()),
        emulation=emulation_from_json(emulation) if emulation else None,
        not_emulated=arguments.get("not_emulated"),
    )
    report, answers = measure_package(manifest, job, progress)
    write_text(out / "report.json", dump_json(report))
    # Where an output is not finite, there are no answers for other tools.
    if not report["fidelity"]["non_finite_positions"]:
        write_text(out / ANSWERS, dump_json(answers))
    checks = {check["name"]: check["verdict"] for check in report["checks"]}
    return {"verdict": report["verdict"], "checks": checks}


def make_report(manifest: Manifest, job: Job, progress: Progress) -> dict[str, Any]:
    """Measure a package and judge it. Writes nothing. Raises as `validate_step` does."""
    return measure_package(manifest, job, progress)[0]


def measure_package(
    manifest: Manifest, job: Job, progress: Progress
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(report, answers): as `make_report`, and what happened item by item."""
    sections, answers = measure_sections(manifest, job, progress)
    return finish_report(sections), answers


def measure_sections(
    manifest: Manifest, job: Job, progress: Progress
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(all of a report but its verdicts, answers item by item). Raises as `validate_step` does."""
    limits = read_limits(manifest.path / "self_test")
    folder = self_test_folder(manifest, job)
    self_test = load_self_test(folder)
    progress("opening the package")
    opened = open_variant(manifest, job.variant, job.device, job.threads)
    sections, answers = _measure(opened, self_test, job, progress)
    sections["long_context"] = long_context(opened, manifest.path / "self_test", progress)
    sections["tokenizer"] = tokenizer_parity(opened, self_test)
    sections["providers"] = placement(opened)
    prompt, new_tokens = make_prompt([i.prompt_ids for i in self_test.items], opened.context_length)
    # Two loaded models are enough: the latency workers bring their own.
    del opened
    sections["survival"] = _survival(job, progress)
    sections["emulated"] = _emulated(manifest, self_test, job, progress)
    sections["latency"] = _latency(manifest, job, prompt, new_tokens, progress)
    ships = package_bytes(manifest.path)
    sections["cost"] = cost_section(limits, sections["latency"], ships)
    report: dict[str, Any] = {
        "identifier": job.identifier,
        "device": job.device,
        "variant": job.variant.name,
        "package_digest": manifest.digest,
        "checks": [],
        **sections,
        "size": {
            "base_bytes": limits.get("base_bytes"),
            "package_bytes": ships,
            "graph_bytes": graph_bytes(job.variant),
        },
        "weights": (limits.get("weights") or {}).get(job.variant.name),
        "merge": merge_facts(job.merge or limits.get("merge")),
        "evidence": evidence(job, sections),
        "environment": environment(job),
        "steps": [dict(step) for step in job.steps],
        "self_test": describe_self_test(manifest, self_test),
        "sampling": describe_sampling(self_test),
        "provenance": describe_provenance(manifest.lock),
        "inputs": {
            "recipe": digest_of_json(manifest.lock.get("recipe")),
            "self_test": self_test_digest(folder),
            **shipped_inputs(manifest, folder),
        },
    }
    report["checks"] = make_checks(limits, report)
    return without_text(report) if job.private_data else report, answers


def _measure(
    opened: OpenPackage, self_test: SelfTest, job: Job, progress: Progress
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`fidelity`, `task_metrics`, `examples` and `per_item`; and the answers item by item."""
    logprobs = open_logprobs(job.reference, self_test) if job.reference else None
    evaluation = evaluate(opened, self_test, logprobs, progress)
    progress("figures and their bounds")
    measured = measure_task(self_test, evaluation)
    kind = WHOLE_VOCABULARY if logprobs is not None else TOP_K_BOUND
    host = probe_host()
    answers = make_answers(opened, self_test, evaluation, measured.exact)
    sections = {
        "fidelity": {
            **fidelity(self_test, evaluation.positions, kind),
            "source": str(self_test.facts.get("source")),
            "flips": measured.flips,
            "measured_on": f"{host.arch} host {host.fingerprint}",
        },
        "task_metrics": measured.metrics,
        "examples": worst_examples(self_test, evaluation, measured.exact),
        "per_item": per_item(self_test, evaluation, measured.exact),
    }
    return sections, answers


def _survival(job: Job, progress: Progress) -> dict[str, Any] | None:
    if job.survival is None:
        return None
    if not job.thorough:
        return {**job.survival, "not_run": "asked for with --thorough"}
    if job.reference is None or job.checkpoint is None:
        return {**job.survival, "not_run": "the reference or the merged checkpoint is not here"}
    if "float32" not in _types_that_fit(job.checkpoint, available_memory_bytes()):
        return {**job.survival, "not_run": "the model does not fit this machine's memory"}
    files = {"checkpoint": job.checkpoint, "graph": job.variant.folder, "reference": job.reference}
    return run_modules(job.survival, files, job.threads, progress)


def _emulated(
    manifest: Manifest, self_test: SelfTest, job: Job, progress: Progress
) -> dict[str, Any] | None:
    if job.emulation is None and job.not_emulated is None:
        return None
    # Loads what a device has not.
    from edgetune.validate.emulated import measure_emulated, not_emulated

    if job.emulation is None:
        return not_emulated(str(job.not_emulated), self_test, None)
    try:
        return measure_emulated(
            manifest,
            job.variant,
            self_test,
            job.emulation,
            job.device,
            self_test_folder(manifest, job),
            job.reference,
            job.threads,
            progress,
        )
    except (MissingError, StepFailedError) as why:
        if job.must_emulate:
            raise
        reason = f"{why.message}; {why.hint}" if why.hint else why.message
        return not_emulated(reason, self_test, job.emulation)


def _latency(
    manifest: Manifest, job: Job, prompt: list[int], new_tokens: int, progress: Progress
) -> dict[str, Any]:
    if not job.here:
        emulated = "; an emulator is no measure of time" if job.emulation else ""
        return not_measured(f"this host is not a {job.device}{emulated}")
    shared = {
        "threads": job.threads,
        "prompt_ids": prompt,
        "prompt_tokens": len(prompt),
        "new_tokens": new_tokens,
    }
    candidate = {"package": str(manifest.path), "variant": job.variant.name, **shared}
    reference = None
    if job.checkpoint is not None:
        types = _types_that_fit(job.checkpoint, available_memory_bytes())
        reference = {"checkpoint": str(job.checkpoint), "dtype_candidates": types, **shared}
    return measure_latency(candidate, reference, progress, job.thorough)


def _types_that_fit(checkpoint: Path, available_bytes: int) -> list[str]:
    """The data types in which the unconverted model can be held in memory beside the package."""
    files = checkpoint.glob("*.safetensors")
    weights = sum(math.prod(e.shape) for f in files for e in read_header(f).values())
    room = available_bytes - _OTHER_BYTES
    return [name for name, size in _DTYPE_BYTES.items() if weights * (size + 1) <= room]


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None
