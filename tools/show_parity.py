"""Write docs/adapters.md: what is merged, how exactly, and what is refused.

    python tools/show_parity.py          # measures every pair again, and writes the page
    python tools/show_parity.py --check  # only compares the refusals on the page with the code

Each kind of adapter is made with random values on tiny random bases (2 layers, width 64, float32
arithmetic), merged by the merge step, and its logits compared with those of the unmerged model in
PEFT. Needs a checkout: the adapters are those of the tests.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from edgetune.checkpoint.adapter_fields import MODIFY_BASE, REFUSED  # noqa: E402
from edgetune.checkpoint.peft_types import TYPES  # noqa: E402

PAGE = ROOT / "docs" / "adapters.md"
MARK = "<!-- measured: everything from here on is written by tools/show_parity.py -->"
BASES: dict[str, dict[str, object]] = {
    "Llama": {"model_type": "llama"},
    "Phi-3": {"model_type": "phi3"},
    "Qwen2, tied": {"model_type": "qwen2", "tie_word_embeddings": True},
}
FUSED = {"phi3": ["qkv_proj", "down_proj"]}
Maker = Callable[[Path, Path, str], Path]  # (base, folder, family) → the adapter's folder


def main() -> int:
    """Write the page, or compare it. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare the refusals, write nothing")
    arguments = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    head = text.partition(MARK)[0]
    refusals = "\n".join(refusal_lines())
    if arguments.check:
        if refusals not in text:
            print(f"{PAGE}: its refusals are not those of the code; run tools/show_parity.py")
            return 1
        return 0
    parts = [head + MARK, "", *table_lines(), "", refusals, ""]
    PAGE.write_text("\n".join(parts), encoding="utf-8")
    return 0


def table_lines() -> Iterator[str]:
    """The table of measured parities as Markdown."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from edgetune.host import versions_of
    from tests.tiny import build_base

    disable_progress_bar()
    versions = versions_of("peft", "torch", "transformers")
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield "## Measured"
    yield ""
    yield (
        "Largest difference of logits between the merged checkpoint and the unmerged model, in "
        "brackets what the adapter changes at all (largest difference to the base alone). "
        f"{told}, one thread, bases stored in bfloat16. The largest logit is about 4: a build "
        "allows 1e-4 of it."
    )
    yield ""
    yield f"| adapter | {' | '.join(BASES)} |"
    yield f"|---|{'---:|' * len(BASES)}"
    with tempfile.TemporaryDirectory(prefix="show-parity-") as folder:
        place = Path(folder)
        bases = {}
        for name, options in BASES.items():
            bases[name] = build_base(place / name, **options)  # type: ignore[arg-type]
        for kind, make in makers().items():
            cells = []
            for name, base in bases.items():
                torch.manual_seed(1)
                cells.append(measured(base, make, place / f"{kind} {name}".replace("/", "-"), name))
            print(f"{kind}: {' | '.join(cells)}", file=sys.stderr)
            yield f"| {kind} | {' | '.join(cells)} |"


def measured(base: Path, make: Maker, place: Path, name: str) -> str:
    """One cell: the parity and the effect, or that this base is refused."""
    from edgetune.errors import InputRefusedError
    from tests.merge.merged import merge, parity

    family = str(BASES[name]["model_type"])
    adapter = make(base, place / "adapter", family)
    try:
        merge(place / "merged", base, [adapter])
    except InputRefusedError:
        return "refused"
    difference, _, effect = parity(place / "merged", base, [adapter])
    return f"{difference:.0e} ({effect:.1f})" if difference else f"0 ({effect:.1f})"


def makers() -> dict[str, Maker]:
    """Every kind of adapter by the name that the page gives it."""
    from tests.adapter_kinds import KINDS, make_kind
    from tests.merge.test_lora_options import TOKENS, variant, with_noise
    from tests.tiny import make_adapter

    def lora(kind: str = "lora", **config: object) -> Maker:
        def make(base: Path, folder: Path, family: str) -> Path:
            targets = {"target_modules": FUSED[family]} if family in FUSED else {}
            adapter = make_adapter(base, kind, folder=folder, **(targets | config))  # type: ignore[arg-type]
            with_noise(adapter)
            return adapter

        return make

    def other(name: str) -> Maker:
        return lambda base, folder, _: make_kind(base, KINDS[name], folder)

    both = ["embed_tokens", "lm_head"]
    found: dict[str, Maker] = {
        "LoRA": lora(),
        "LoRA, every linear": lora(target_modules="all-linear"),
        "LoRA, rsLoRA": lora(use_rslora=True),
        "LoRA, embeddings": lora(target_modules=[*both, "down_proj"]),
        "LoRA, saved head": lora(modules_to_save=["lm_head"]),
        "LoRA, trained tokens": lora(trainable_token_indices=TOKENS),
        "LoRA, tied adapters": lora(target_modules=both, ensure_weight_tying=True),
        "LoRA, replicated layers": lora(layer_replication=[[0, 2], [0, 2]]),
        "DoRA": lora("dora"),
    }
    for name in ("MiCA", "MonteCLoRA", "VeLoRA", "KaSA"):
        found[f"LoRA, {name}"] = lora(**variant(name))
    return found | {name: other(name) for name in KINDS}


def refusal_lines() -> Iterator[str]:
    """What is refused by name, each with its sentence."""
    yield "## Refused by name"
    yield ""
    yield "| type | why | the way out |"
    yield "|---|---|---|"
    for name, row in TYPES.items():
        if row.refusal:
            yield f"| {row.label} (`{name}`) | {row.refusal} | {row.hint} |"
    yield ""
    yield "Of LoRA and AdaLoRA also:"
    yield ""
    yield "| field | why |"
    yield "|---|---|"
    for field, why in REFUSED.items():
        yield f"| `{field}` | {why} |"
    kinds = ", ".join(MODIFY_BASE)
    yield f"| `init_lora_weights`: {kinds} | moved a part of the base's weights into the adapter |"
    yield ""
    yield (
        "The way out of the last one: PEFT's `save_pretrained(path_initial_model_for_weight_"
        "conversion=…)` writes a plain LoRA adapter."
    )


if __name__ == "__main__":
    sys.exit(main())
