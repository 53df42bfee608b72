"""What the steps have in common: their code's digest, the libraries of their children."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from edgetune.child import Libraries
from edgetune.files import digest_of_json, sha256_of_file
from edgetune.lock import SEED
from edgetune.recipe import Recipe

# Of text that the model samples to calibrate on: not that of the evaluation.
CALIBRATION_SEED = SEED + 1
# Only a 4-bit base needs bitsandbytes, and PEFT takes seconds to import it.
_UNUSED = ("bitsandbytes",)
# transformers' losses of object detectors take it, and a second to import it.
_UNUSED_IN_TORCH = ("scipy",)


@cache
def code_digest(*rooms: str) -> str:
    """Digest of the source files of these rooms: a step made by other code is another step."""
    here = Path(__file__).resolve().parents[1]
    files = sorted(path for room in rooms for path in (here / room).rglob("*.py"))
    return digest_of_json({f.relative_to(here).as_posix(): sha256_of_file(f) for f in files})[:12]


def torch_libraries(recipe: Recipe, packed: bool, room: str) -> Libraries:
    """What a step imports that runs transformers and PEFT; `room` holds its function."""
    found = libraries(recipe, packed, (f"edgetune.{room}", "peft", "transformers", "accelerate"))
    return replace(found, without=(*found.without, *_UNUSED_IN_TORCH))


def libraries(recipe: Recipe, packed: bool, names: tuple[str, ...]) -> Libraries:
    four_bit = packed or recipe.base.trained_as is not None
    return Libraries(names, () if four_bit else _UNUSED)
