"""Whatever a file holds, it is read or refused: no other exception, no hang.

The examples are the same in every run (the profile in conftest); `-m slow` tries many more.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from edgetune.checkpoint import adapter_fields
from edgetune.checkpoint.experts import EXPERTS
from edgetune.checkpoint.families import REFUSED, SUPPORTED
from edgetune.checkpoint.header import DTYPE_BYTES, read_header
from edgetune.checkpoint.peft_types import TYPES
from edgetune.device import load_device
from edgetune.errors import EdgetuneError
from edgetune.files import dump_json, shipped_folder
from edgetune.inspect import describe
from edgetune.planning import plan_builds
from edgetune.recipe import Recipe, load_recipe
from tests.tiny import make_adapter

pytestmark = pytest.mark.line

# What hangs, on the slowest machine and with every line traced: no measure of speed.
MOST_SECONDS = 30.0
FEW, MANY = 60, 1000
ADAPTER, WEIGHTS = "adapter_model.safetensors", "model.safetensors"


def fuzz(count: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=count,
        # no phase that explains a failure: it traces every line, and so slows all examples
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def read_or_refused(*reads: Callable[[], object]) -> None:
    """Call each; a refusal is one sentence that can be printed, and none takes long."""
    for read in reads:
        started, told = time.process_time(), "read"
        try:
            read()
        except EdgetuneError as why:
            told = why.message
        assert told.replace("\n", "").isprintable()
        assert 0 < len(told) < 10_000
        assert time.process_time() - started < MOST_SECONDS


# --- values ---------------------------------------------------------------------------------

NUMBERS = st.sampled_from(
    [0, 1, -1, 2, 7, 64, 2**31, 2**63, 10**30, 10**400, 0.5, -0.0, 1e308, 1e-320, True]
)
WORDS = st.sampled_from(
    ["", "\0", "a\0b", "\ud800", "é" * 3, "x" * 5000, "../..", "/", "~", "q_proj", "all-linear",
     "(a+)+$", "(.*)*x", "(", "[", "(?:" * 200, "(" * 5000, r"\1", "a{9999}" * 9, "none", "nan",
     r"(([a-z_.0-9])*)*#", "(.*.*.*.*.*.*.*.*.*.*.*.*)#", "default", "llama3", "nf4", "auto",
     "\x1b[2J"]
)  # fmt: skip
SCALARS = st.none() | st.booleans() | NUMBERS | WORDS | st.floats(width=32) | st.text(max_size=5)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(WORDS | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
ODD_TEXT = st.sampled_from(
    ["", "{", "[]", "null", "NaN", "{}", "1e999", '{"a":' * 20000, "[" * 100_000, "9" * 5000,
     "\ufeff{}", '{"model_type": "llama"}', '{"peft_type": "LORA"}', '{"peft_type": NaN}']
)  # fmt: skip


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


# --- safetensors ----------------------------------------------------------------------------


def entry(begin: int, end: int, **other: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [begin, end], **other}


SOUND = {"a": entry(0, 8), "b": entry(8, 16), "__metadata__": {"format": "pt"}}
ENTRY_CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from([*DTYPE_BYTES, "F4", "", "f32"]) | JSON,
        "shape": st.lists(NUMBERS | st.integers(-1, 5), max_size=4) | JSON,
        "data_offsets": st.lists(NUMBERS | st.integers(0, 20), min_size=2, max_size=2) | JSON,
    },
)


@st.composite
def safetensors(draw: st.DrawFn) -> bytes:
    """A sound file with something changed: an entry, the text of the header, its length, bytes."""
    header: Any = {k: dict(v) for k, v in SOUND.items()}
    data = bytes(draw(st.sampled_from([16, 15, 17, 0, 4096])))
    kind = draw(st.sampled_from(["entry", "name", "value", "text", "length", "bytes"]))
    if kind == "entry":
        header[draw(st.sampled_from(["a", "b"]))] |= draw(ENTRY_CHANGES)
    elif kind == "name":
        header[draw(WORDS | st.text(max_size=4))] = draw(JSON | st.just(entry(0, 8)))
    elif kind == "value":
        header = draw(JSON)
    text = dumped(header)
    if kind == "text":
        place = draw(st.integers(0, len(text)))
        more = draw(st.sampled_from([b'"a":', b"NaN", b"\xff", b"\0", b"[" * 3000, b"{", b"}"]))
        text = text[:place] + more + text[place + draw(st.integers(0, 4)) :]
    length = len(text)
    if kind == "length":
        length = draw(st.integers(0, 2**64 - 1) | st.integers(0, 400))
    whole = bytearray(length.to_bytes(8, "little") + text + data)
    if kind == "bytes":
        for _ in range(draw(st.integers(1, 8))):
            whole[draw(st.integers(0, len(whole) - 1))] = draw(st.integers(0, 255))
    return bytes(whole)


def try_safetensors(folder: Path, data: bytes) -> None:
    file = folder / "x.safetensors"
    file.write_bytes(data)
    read_or_refused(lambda: read_header(file))


@fuzz(4 * FEW)
@given(data=safetensors() | st.binary(max_size=64))
def test_safetensors(data: bytes, tmp_path: Path) -> None:
    try_safetensors(tmp_path, data)


@pytest.mark.slow
@fuzz(10 * MANY)
@given(data=safetensors() | st.binary(max_size=64))
def test_safetensors_at_length(data: bytes, tmp_path: Path) -> None:
    try_safetensors(tmp_path, data)


# --- adapters and bases ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and an adapter of this module's own, whose configurations it may overwrite."""
    place = tmp_path_factory.mktemp("fuzz")
    base = Path(shutil.copytree(tiny_llama, place / "base"))
    return base, make_adapter(tiny_llama, folder=place / "adapter")


@contextlib.contextmanager
def replaced(file: Path, content: bytes) -> Any:
    before = file.read_bytes()
    file.write_bytes(content)
    try:
        yield
    finally:
        file.write_bytes(before)


def plan(base: Path, adapter: Path, out: Path) -> object:
    recipe = Recipe.model_validate(
        {"name": "x", "base": {"path": str(base)}, "adapters": ({"path": str(adapter)},)}
    )
    return plan_builds(recipe, ["generic-x86-64"], out)


def try_config(file: Path, content: bytes, base: Path, adapter: Path, out: Path) -> None:
    with replaced(file, content):
        read_or_refused(
            lambda: plan(base, adapter, out),
            lambda: dump_json(describe(file.parent)).encode(),
        )
    assert not out.exists()


FIELDS = sorted(adapter_fields.USED | adapter_fields.HARMLESS | adapter_fields.REFUSED.keys())
OTHER_FIELDS = sorted(set().union(*(row.fields for row in TYPES.values())) - set(FIELDS))
PATTERNS = st.dictionaries(WORDS, NUMBERS, max_size=3)
RANGES = st.lists(st.lists(NUMBERS, min_size=2, max_size=2), max_size=3)
OTHER_TYPE = st.just({}) | st.fixed_dictionaries({"peft_type": st.sampled_from([*TYPES, "NEXT"])})


def of_type(found: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    return {**found[0], **found[1]}


ADAPTER_CHANGES = st.tuples(
    OTHER_TYPE,
    st.dictionaries(
        st.sampled_from(FIELDS) | st.sampled_from(OTHER_FIELDS),
        JSON | PATTERNS | RANGES | st.lists(WORDS, max_size=3),
        min_size=1,
        max_size=3,
    ),
).map(of_type)
BASE_FIELDS = [
    "model_type", "architectures", "hidden_size", "num_attention_heads", "num_key_value_heads",
    "head_dim", "num_hidden_layers", "vocab_size", "rope_parameters", "rope_scaling",
    "rope_theta", "partial_rotary_factor", "tie_word_embeddings", "quantization_config",
    "torch_dtype", "dtype", "_name_or_path", "auto_map", "max_position_embeddings",
    "sliding_window", "layer_types", "eos_token_id", "quantization", "clip_qkv", "text_config",
    "original_max_position_embeddings", "vision_config", "use_bidirectional_attention",
]  # fmt: skip
ROPE = st.sampled_from(
    [{"rope_type": "longrope", "original_max_position_embeddings": "4"}, {"a": {"rope_type": 4}},
     {"full_attention": {"partial_rotary_factor": 10**400}}, {"rope_type": "yarn", "factor": None}]
)  # fmt: skip
OTHER_FAMILY = st.just({}) | st.fixed_dictionaries(
    {"model_type": st.sampled_from([*SUPPORTED, *EXPERTS, *REFUSED])}
)
BASE_CHANGES = st.tuples(
    OTHER_FAMILY,
    st.dictionaries(
        st.sampled_from(BASE_FIELDS),
        JSON
        | ROPE
        | st.sampled_from([{"quant_method": "bitsandbytes", "load_in_4bit": True}, {"bits": 4}]),
        min_size=1,
        max_size=3,
    ),
).map(of_type)


def changed(file: Path, changes: dict[str, Any]) -> bytes:
    return dumped({**json.loads(file.read_text()), **changes})


@fuzz(2 * FEW)
@given(changes=ADAPTER_CHANGES)
@example(changes={"target_modules": "(([a-z_.0-9])*)*#"})
@example(changes={"rank_pattern": {"(([a-z_.0-9])*)*#": 4}})
@example(changes={"exclude_modules": "(.*.*.*.*.*.*.*.*.*.*.*.*)#"})
@example(changes={"modules_to_save": ["(.*)*x"]})
@example(changes={"layers_pattern": ["(.*)*x"], "layers_to_transform": [0]})
@example(changes={"r": 10**400})
@example(changes={"lora_alpha": 10**400})
@example(changes={"base_model_name_or_path": "x" * 5000})
@example(changes={"layer_replication": [[0, 2**63]]})
@example(changes={"peft_type": "HRA", "layer_replication": "0-2"})
@example(changes={"peft_type": "OSF", "rank_pattern": {"(([a-z_.0-9])*)*#": 4}})
@example(changes={"peft_type": "C3A", "block_size_pattern": {"(.*)*x": 4}})
@example(changes={"peft_type": "IA3", "feedforward_modules": "(([a-z_.0-9])*)*#"})
def test_adapter_config(
    changes: dict[str, Any], folders: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapter = folders
    file = adapter / "adapter_config.json"
    try_config(file, changed(file, changes), base, adapter, tmp_path / "out")


@fuzz(2 * FEW)
@given(changes=BASE_CHANGES)
@example(changes={"rope_parameters": "x"})
@example(changes={"num_attention_heads": "4"})
@example(changes={"architectures": 3})
def test_base_config(changes: dict[str, Any], folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = folders
    file = base / "config.json"
    try_config(file, changed(file, changes), base, adapter, tmp_path / "out")


@fuzz(FEW)
@given(name=st.sampled_from(["config.json", "adapter_config.json", "generation_config.json"]),
       content=ODD_TEXT.map(str.encode) | JSON.map(dumped) | st.binary(max_size=20))  # fmt: skip
def test_no_config_at_all(
    name: str, content: bytes, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapter = folders
    file = (adapter if name == "adapter_config.json" else base) / name
    try_config(file, content, base, adapter, tmp_path / "out")


@fuzz(FEW)
@given(index=JSON | st.dictionaries(WORDS, WORDS | JSON, max_size=4).map(
    lambda found: {"weight_map": found}))  # fmt: skip
@example(index={"weight_map": {"a": "a\0.safetensors"}})
@example(index={"weight_map": {"a": "x" * 5000 + ".safetensors"}})
@example(index={"weight_map": {"a": "config.json/.safetensors"}})
def test_index(index: Any, folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = folders
    (base / WEIGHTS).rename(base / "aside")
    file = base / f"{WEIGHTS}.index.json"
    file.write_bytes(b"")
    try:
        try_config(file, dumped(index), base, adapter, tmp_path / "out")
    finally:
        file.unlink()
        (base / "aside").rename(base / WEIGHTS)


@pytest.mark.slow
@fuzz(MANY)
@given(adapter_changes=ADAPTER_CHANGES, base_changes=BASE_CHANGES | st.just({}))
def test_merge_of_what_was_planned(
    adapter_changes: dict[str, Any],
    base_changes: dict[str, Any],
    folders: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    """What a plan lets through, the merge takes or refuses: PEFT and transformers see it then."""
    from tests.merge.merged import merge

    base, adapter = folders
    one, other = adapter / "adapter_config.json", base / "config.json"
    with (
        replaced(one, changed(one, adapter_changes)),
        replaced(other, changed(other, base_changes)),
    ):
        try:
            read_or_refused(lambda: merge(tmp_path / "merged", base, [adapter]))
        finally:
            shutil.rmtree(tmp_path / "merged", ignore_errors=True)


# --- recipes and devices --------------------------------------------------------------------

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: *a{n - 1}, y{n}: *a{n - 1}}}\n" for n in range(1, 40)
)
YAML_TEXT = st.sampled_from(
    [LAUGHS, MERGES, "base: &a [*a]\n", "base: &a {b: *a}\n", "[" * 20000, "{a: " * 5000,
     "- " * 20000, "a:\n" * 3, "? [a]\n: b\n", "? {a: b}\n: c\n",
     "base: !!python/name:os.system x\n",
     "base: !!int x\n", "base: !!bool maybe\n", "base: !!binary =\n", "base: !!timestamp x\n",
     "base: !!omap [a]\n", "base: !!set {a, b}\n", "%YAML 9.9\n---\nbase: x\n", "base: *nothing\n",
     "base: x\n---\nbase: y\n", "\tbase: x\n", "base: \x00\n", "base: 'x\n", "name: 2020-01-01\n",
     "base: 0o9\n", "base: 1_0:2\n", "!!map base\n", "<<: x\n", "<<: [1]\n", "base: {<<: *x}\n",
     "base: '\\\n", 'base: "\\x', 'base: "\\uD800"\n', "base: " + "x" * 5000 + "\n",
     "group_size: " + "9" * 5000 + "\n", "base: !<tag:x> y\n", "base: !x {a: 1}\n", "&a : b\n",
     'base: "a\\0b"\n', "1: 2\n", "null: 1\n", "{}: 1\n", "? \n", "", "#", "---", "..."]
)  # fmt: skip
RECIPE_FIELDS = sorted(Recipe.model_fields)


def yaml_of(values: dict[str, Any]) -> str:
    """JSON is YAML, as far as its text is printable."""
    return "".join(f"{json.dumps(key)}: {json.dumps(value)}\n" for key, value in values.items())


RECIPES = YAML_TEXT | st.dictionaries(
    st.sampled_from(RECIPE_FIELDS) | WORDS, JSON, min_size=1, max_size=3
).map(lambda values: yaml_of({"base": "models/x", **values}))
DEVICE = (shipped_folder("devices") / "raspberry-pi-5.yaml").read_text(encoding="utf-8")


@st.composite
def devices(draw: st.DrawFn) -> str:
    """A shipped profile with a line changed, or the odd texts."""
    if draw(st.booleans()):
        return draw(YAML_TEXT)
    lines = DEVICE.splitlines()
    place = draw(st.integers(0, len(lines) - 1))
    key = lines[place].split(":")[0]
    lines[place] = draw(
        JSON.map(lambda value: f"{key}: {json.dumps(value)}") | st.just("") | st.text(max_size=20)
    )
    return "\n".join(lines)


def try_documents(folder: Path, recipe: str, device: str) -> None:
    for name, text, load in (("r.yaml", recipe, load_recipe), ("d.yaml", device, load_device)):
        (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))
        read_or_refused(lambda load=load, name=name: load(folder / name))  # type: ignore[misc]


@fuzz(4 * FEW)
@given(recipe=RECIPES, device=devices())
@example(recipe=LAUGHS, device=LAUGHS)
@example(recipe=MERGES, device=MERGES)
def test_documents(recipe: str, device: str, tmp_path: Path) -> None:
    try_documents(tmp_path, recipe, device)


@pytest.mark.slow
@fuzz(MANY)
@given(recipe=RECIPES, device=devices())
def test_documents_at_length(recipe: str, device: str, tmp_path: Path) -> None:
    try_documents(tmp_path, recipe, device)


@pytest.mark.parametrize("unit", ["k{}: 1\n", "k{}: [1, 2]\n", "k{}: &k{} x\n", "- ", "? ", "&a "])
def test_the_largest_document_is_read_in_time(unit: str, tmp_path: Path) -> None:
    text = "".join(unit.replace("{}", str(n)) for n in range(32 << 10))[: 32 << 10]
    try_documents(tmp_path, text, "")
