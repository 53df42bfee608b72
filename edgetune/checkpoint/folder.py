"""A Hugging Face checkpoint folder: config, tensors, side files. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from edgetune.checkpoint.config_fields import config_problem
from edgetune.checkpoint.families import ties_embeddings
from edgetune.checkpoint.foreign import ORIGINAL, is_renamed_safetensors, other_format
from edgetune.checkpoint.header import TensorEntry, read_header
from edgetune.errors import InputRefusedError
from edgetune.files import is_file, is_folder, read_json

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_CHUNK_BYTES = 1 << 20
PICKLED_FILE = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
_PICKLES = re.compile(r".*\.(bin|pt|pth|ckpt)")
# What a merged checkpoint takes over besides config and weights; never Python, never pickle.
_SIDE_FILES = re.compile(
    r"(tokenizer\.json|tokenizer_config\.json|tokenizer\.model|special_tokens_map\.json"
    r"|added_tokens\.json|vocab\.json|vocab\.txt|merges\.txt|spiece\.model"
    r"|sentencepiece\.bpe\.model|tokenizer\.model\.v\d+|tekken\.json"
    r"|chat_template\.(jinja|json)|generation_config\.json)"
)
# What bitsandbytes stores beside a packed 4-bit weight (its QuantState.as_dict).
_STATISTIC = re.compile(
    r"(?P<module>.+)\.weight\."
    r"(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__(nf4|fp4))"
)
_TEMPLATES = "additional_chat_templates"  # beside chat_template.jinja, transformers 4.53 and later


@dataclass(frozen=True)
class CheckpointFolder:
    """A checkpoint whose files were found whole by their headers.

    `files` are relative paths of all that matters to a build: config, weights, index, side files.
    `tied` says that input and output embeddings are one tensor, stored as `tied_source`.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, TensorEntry]
    files: tuple[str, ...]
    side_files: tuple[str, ...]
    weight_bytes: int
    quantization: dict[str, Any] | None
    tied: bool
    generation: dict[str, Any]
    model_type: str

    @property
    def tied_source(self) -> str:
        """The name of the tensor that holds both embeddings of a tied model."""
        return EMBEDDING if EMBEDDING in self.tensors else HEAD

    @property
    def packed(self) -> frozenset[str]:
        """The modules whose weights are stored packed in 4 bits (bitsandbytes)."""
        found = (_STATISTIC.fullmatch(name) for name in self.tensors)
        return frozenset(match["module"] for match in found if match)


def is_statistic(name: str) -> bool:
    """True for the tensors that bitsandbytes stores beside a packed weight."""
    return _STATISTIC.fullmatch(name) is not None


def read_checkpoint(path: Path) -> CheckpointFolder:
    """Read a checkpoint folder: config and headers, not the weights.

    Raises InputRefusedError: no folder, no config.json, no safetensors weights (pickle only), an
    index that names a missing file or tensor, a damaged file, a path that leads out of the folder.
    """
    if not is_folder(path):
        msg = f"{path}: not a folder; a model is a folder with config.json and *.safetensors"
        raise InputRefusedError(msg, "check the path")
    config = _read_mapping(path, "config.json")
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        msg = f"{path / 'config.json'}: no model_type"
        raise InputRefusedError(msg, "take the config.json that belongs to these weights")
    weights, tensors = _read_weights(path)
    if problem := config_problem(config, len(tensors)):
        msg = f"{path / 'config.json'}: {problem}"
        raise InputRefusedError(msg, "take the config.json that belongs to these weights")
    side_files = list_side_files(path)
    generation = {}
    if "generation_config.json" in side_files:
        generation = _read_mapping(path, "generation_config.json")
    index = [] if weights == [SINGLE_FILE] else [INDEX_FILE]
    return CheckpointFolder(
        path=path,
        config=config,
        tensors=tensors,
        files=tuple(sorted(["config.json", *index, *weights, *side_files])),
        side_files=tuple(side_files),
        weight_bytes=sum((path / name).stat().st_size for name in weights),
        quantization=config.get("quantization_config"),
        tied=ties_embeddings(config) and not _both_stored(path, tensors),
        generation=generation,
        model_type=model_type,
    )


def safe_file(folder: Path, relative: str) -> Path:
    """`folder / relative`, an existing file proved to lie in the folder, links resolved.

    The Hugging Face cache links `snapshots/<revision>/<file>` to `../../blobs/<digest>`; that one
    way out is allowed. Raises InputRefusedError for any other, and for a missing file.
    """
    place = folder / relative
    root = folder.resolve()
    roots = [root]
    if folder.absolute().parent.name == "snapshots":
        roots.append(folder.absolute().parent.parent.resolve() / "blobs")
    inside = not Path(relative).is_absolute() and ".." not in Path(relative).parts
    try:
        found = place.resolve()
    except (OSError, ValueError, RuntimeError):  # a NUL byte, too long, a loop of links
        msg = f"{folder}: {relative!r} is no name of a file"
        raise InputRefusedError(msg, "copy the folder again from where it came from") from None
    if not inside or not any(found.is_relative_to(r) for r in roots):
        msg = f"{folder}: {relative!r} leads out of the folder"
        raise InputRefusedError(msg, "keep the files of a checkpoint in its own folder")
    if not is_file(place):
        msg = f"{place}: no such file"
        raise InputRefusedError(msg, "copy the folder again, with all of its files")
    return place


def is_pickled(path: Path) -> bool:
    """True for a checkpoint folder whose weights are transformers' pickles and nothing else."""
    names = (SINGLE_FILE, INDEX_FILE)
    return not any((path / name).exists() for name in names) and any(
        (path / name).is_file() for name in (PICKLED_FILE, PICKLED_INDEX)
    )


def pickle_files(path: Path) -> tuple[list[str], list[str]]:
    """([the index, if there is one], weight files) of such a folder.

    Raises InputRefusedError for an index that names no file of this folder.
    """
    if (path / PICKLED_FILE).exists():
        return [], [PICKLED_FILE]
    weight_map = _weight_map(path, PICKLED_INDEX)
    return [PICKLED_INDEX], sorted(
        {_shard_name(path, PICKLED_INDEX, name, ".bin") for name in weight_map.values()}
    )


def _read_mapping(folder: Path, name: str) -> dict[str, Any]:
    value = read_json(safe_file(folder, name))
    if not isinstance(value, dict):
        msg = f"{folder / name}: not a JSON object"
        raise InputRefusedError(msg, "copy the file again from where it came from")
    return value


def _read_weights(path: Path) -> tuple[list[str], dict[str, TensorEntry]]:
    """(weight files, tensors). One file goes before an index, as transformers does it."""
    if (path / SINGLE_FILE).exists() or (path / SINGLE_FILE).is_symlink():
        return [SINGLE_FILE], read_header(safe_file(path, SINGLE_FILE))
    if not (path / INDEX_FILE).exists():
        raise _no_weights(path)
    weight_map = _weight_map(path, INDEX_FILE)
    files = sorted(
        {_shard_name(path, INDEX_FILE, name, ".safetensors") for name in weight_map.values()}
    )
    tensors: dict[str, TensorEntry] = {}
    for file in files:
        found = read_header(safe_file(path, file))
        if doubled := sorted(found.keys() & tensors.keys()):
            other = tensors[doubled[0]].file
            msg = f"{path}: tensor {doubled[0]!r} is stored twice, in {other} and {file}"
            raise InputRefusedError(msg, "copy the folder again from where it came from")
        tensors.update(found)
    for name, file in weight_map.items():
        if name not in tensors or tensors[name].file != file:
            msg = f"{path / INDEX_FILE}: tensor {name!r} is not in {file}"
            raise InputRefusedError(msg, "index and weight files do not belong together")
    return files, tensors


def _weight_map(path: Path, index: str) -> dict[str, Any]:
    """{tensor: file} of an index, neither checked yet."""
    weight_map = _read_mapping(path, index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        msg = f"{path / index}: no weight_map"
        raise InputRefusedError(msg, "copy the file again from where it came from")
    return weight_map


def _shard_name(path: Path, index: str, name: Any, suffix: str) -> str:
    if not isinstance(name, str) or not name.endswith(suffix):
        msg = f"{path / index}: {name!r} is not a {suffix.removeprefix('.')} file"
        raise InputRefusedError(msg, "convert the weights to safetensors with save_pretrained")
    if Path(name).name != name:
        msg = f"{path / index}: {name!r} leads out of the folder"
        raise InputRefusedError(msg, "keep the files of a checkpoint in its own folder")
    return name


def _no_weights(path: Path) -> InputRefusedError:
    pickles = sorted(p.name for p in path.iterdir() if _PICKLES.fullmatch(p.name))
    if not pickles:
        msg = f"{path}: neither {SINGLE_FILE} nor {INDEX_FILE}"
        if found := other_format(path):
            return InputRefusedError(f"{msg}; {found}", ORIGINAL)
        return InputRefusedError(msg, "a model is a folder with config.json and *.safetensors")
    if is_renamed_safetensors(path / pickles[0]):
        msg = f"{path / pickles[0]}: a safetensors file under another name"
        return InputRefusedError(msg, f"call it {SINGLE_FILE}")
    msg = f"{path}: its weights are pickle files ({pickles[0]}), which can run code when read"
    hint = (
        "where you trust them, load the model with transformers and save it again: "
        "save_pretrained writes safetensors"
    )
    if is_pickled(path):
        hint = f"--allow-pickle reads them in a confined process; or, {hint}"
    return InputRefusedError(msg, hint)


def list_side_files(path: Path) -> list[str]:
    """The tokenizer's and generation's files of a checkpoint, sorted, each proved to lie in it."""
    names = [p.name for p in path.iterdir() if _SIDE_FILES.fullmatch(p.name)]
    templates = [f"{_TEMPLATES}/{p.name}" for p in (path / _TEMPLATES).glob("*.jinja")]
    for name in chain(names, templates):
        safe_file(path, name)
    return sorted([*names, *templates])


def _both_stored(path: Path, tensors: Mapping[str, TensorEntry]) -> bool:
    """True when both embeddings are stored and differ: transformers then does not tie them."""
    one, other = tensors.get(EMBEDDING), tensors.get(HEAD)
    if one is None or other is None:
        return False
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return True
    return any(a != b for a, b in zip(_chunks(path, one), _chunks(path, other), strict=True))


def _chunks(path: Path, entry: TensorEntry) -> Iterable[bytes]:
    with (path / entry.file).open("rb") as file:
        file.seek(entry.begin)
        left = entry.nbytes
        while left:
            chunk = file.read(min(left, _CHUNK_BYTES))
            left -= len(chunk)
            yield chunk
