"""Step 1, merge: base + adapters → a merged Hugging Face folder, a tensor at a time.

The arithmetic is PEFT's own (`layer.py`), in float32, onto the weights that the adapter saw in
training. Every tensor of every adapter is used exactly once, or the merge is refused naming it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune.checkpoint.adapter import Adapter, read_adapter
from edgetune.checkpoint.combination import merge_problems, merge_warnings, raise_problems
from edgetune.checkpoint.experts import stored_shapes
from edgetune.checkpoint.folder import CheckpointFolder, read_checkpoint
from edgetune.checkpoint.four_bit import quantized_by_transformers
from edgetune.checkpoint.reshaped import reshaped
from edgetune.checkpoint.skeleton import meta_model
from edgetune.checkpoint.tensors import write_checkpoint_weights
from edgetune.errors import InputRefusedError
from edgetune.files import copy_file, dump_json, write_text
from edgetune.merge.adapted import Adapted, adapt
from edgetune.merge.base import prove_base
from edgetune.merge.changes import modules_of, summary_of
from edgetune.merge.combined import combined_adapter
from edgetune.merge.outputs import Work, base_rows, make_outputs


def merge_step(
    arguments: Mapping[str, Any], out: Path, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Write the merged checkpoint into `out`; see the module's docstring.

    `arguments`: base {path, trained_as}, adapters [{path, weight}], combine (a recipe's, or null),
    onto, merge_dtype. The facts are the tensors used and in all, onto what was merged (null where
    the base never was 4-bit), the touched tensors, whether embeddings were untied, the rounding,
    what the adapters changed in each module (`all_modules`; `modules` in short), warnings.
    Raises InputRefusedError, UsageError.
    """
    progress("reading base and adapters")
    base = read_checkpoint(Path(arguments["base"]["path"]))
    trained_as, onto = arguments["base"]["trained_as"], str(arguments["onto"])
    adapters = [(read_adapter(Path(a["path"])), float(a["weight"])) for a in arguments["adapters"]]
    combine = arguments.get("combine")
    raise_problems(merge_problems(base, adapters, trained_as, onto, combine))
    model = meta_model(base)
    shapes = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    prove_base(base, stored_shapes(base.model_type, shapes))
    stored, base = base, reshaped(base, [adapter for adapter, _ in adapters])
    if base is not stored:
        model = meta_model(base)
    four_bit = base.packed
    if trained_as and not four_bit and onto == "dequantized":
        four_bit = quantized_by_transformers(model, trained_as)
    total = sum(len(adapter.tensors) for adapter, _ in adapters)
    load = base_rows(base, four_bit, trained_as)
    with contextlib.ExitStack() as stack:
        merged = adapters
        if combine:
            progress(f"combining the adapters: {combine['how']}")
            merged = [(stack.enter_context(combined_adapter(base, adapters, combine)), 1.0)]
        adapted = adapt(base, merged, load)
        work = Work(base, adapted, four_bit, trained_as, str(arguments["merge_dtype"]))
        outputs, touched = make_outputs(work)

        done: list[str] = []

        def told(name: str) -> None:
            done.append(name)
            progress(f"tensor {len(done)} of {len(outputs)}: {name}")

        write_checkpoint_weights(out, outputs, told)
        _write_side_files(stored, out, work, touched, [adapter for adapter, _ in merged])
        used = _prove_all_used(adapted, [adapter for adapter, _ in merged])
    modules = modules_of(work.changes)
    return {
        # PEFT combined all of them, or refused
        "tensors_used": total if combine else used,
        "tensors_total": total,
        "onto": onto if trained_as or base.packed else None,
        "touched": touched,
        "untied": work.untied,
        "rounding_max_abs": work.rounding.max_abs if work.merge_dtype == "base" else None,
        "modules": summary_of(modules),
        "all_modules": modules,
        "warnings": merge_warnings(base, [adapter for adapter, _ in adapters]),
    }


def _prove_all_used(adapted: Adapted, adapters: Sequence[Adapter]) -> int:
    """How many adapter tensors were used. Raises InputRefusedError naming one that was not."""
    for number, adapter in enumerate(adapters):
        for name in sorted(adapter.tensors):
            if (f"adapter_{number}", name) not in adapted.ledger.used:
                msg = f"{adapter.path}: tensor {name!r} went into no tensor of the merged model"
                raise InputRefusedError(msg, "name the base that this adapter was trained on")
    return len(adapted.ledger.used)


def _write_side_files(
    stored: CheckpointFolder, out: Path, work: Work, touched: int, adapters: Sequence[Adapter]
) -> None:
    """config.json with what the merge changed; tokenizer and the like byte for byte.

    An adapter that changed the vocabulary brings the tokenizer, if it has one.
    """
    base = work.base
    resized = base.config.get("vocab_size") != stored.config.get("vocab_size")
    own = next((a for a in adapters if resized and a.tokenizer_files), None)
    for name in stored.side_files:
        if own is None or name == "generation_config.json":
            copy_file(base.path / name, out / name)
    if own is not None:
        for name in own.tokenizer_files:
            (out / name).parent.mkdir(exist_ok=True)
            copy_file(own.path / name, out / name)
    changes: dict[str, Any] = {}
    if touched and work.merge_dtype == "float32":
        changes["dtype"] = "float32"
    if work.untied:
        changes["tie_word_embeddings"] = False
    # remote code is not taken along; the families built here need none
    dropped = {"quantization_config", "auto_map"} & base.config.keys()
    if not changes and not dropped and base.config == stored.config:
        copy_file(base.path / "config.json", out / "config.json")
        return
    if "dtype" in changes:
        dropped |= {"torch_dtype"}
    kept = {k: v for k, v in base.config.items() if k not in dropped}
    write_text(out / "config.json", dump_json({**kept, **changes}))
