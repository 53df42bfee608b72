"""What the merge refuses: the sentence, by name, and the exit code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgetune.errors import INPUT_REFUSED, USAGE, EdgetuneError
from tests.merge.merged import NF4, NF4_DOUBLE, merge
from tests.tiny import build_four_bit, edit_header, edit_tensors, make_adapter

pytestmark = pytest.mark.line

ADAPTER = "adapter_model.safetensors"
WEIGHTS = "model.safetensors"
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
EMBEDDING = "base_model.model.model.embed_tokens.base_layer.weight"

Change = Callable[[Path], None]


def config(**changes: Any) -> Change:
    """Change fields of adapter_config.json or config.json."""

    def change(folder: Path) -> None:
        name = "adapter_config.json"
        file = folder / (name if (folder / name).exists() else "config.json")
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def tensors(change: Callable[[dict[str, Any]], dict[str, Any]], file: str = ADAPTER) -> Change:
    return lambda folder: edit_tensors(folder / file, change)


def without(name: str) -> Change:
    return tensors(lambda t: {n: v for n, v in t.items() if n != name})


def renamed(old: str, new: str) -> Change:
    return tensors(lambda t: {new if n == old else n: v for n, v in t.items()})


def with_value(name: str, value: float, file: str = ADAPTER) -> Change:
    def change(found: dict[str, Any]) -> dict[str, Any]:
        found[name].reshape(-1)[3] = value
        return found

    return tensors(change, file)


def doubled(folder: Path) -> None:
    """One name twice in the header: the second hides the first from most readers."""
    file = folder / ADAPTER
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].decode().rstrip()
    name = f'"{Q0}.lora_A.weight"'
    start = header.index(name)
    entry = header[start : header.index("}", start) + 1]
    text = (header[:-1] + "," + entry + "}").encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def truncated(file: str) -> Change:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-7])


def pickled(file: str, name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / file).unlink()
        (folder / name).write_bytes(b"PK\x03\x04")

    return change


# what is wrong with the adapter: (kind, LoraConfig's fields, change, words of the message)
ADAPTERS: dict[str, tuple[str, dict[str, Any], Change, str]] = {
    "missing tensor": ("lora", {}, without(f"{Q0}.lora_B.weight"), f"{Q0}.lora_B.weight' is mi"),
    "missing magnitude": (
        "dora", {}, without(f"{Q0}.lora_magnitude_vector"), "lora_magnitude_vector' is missing",
    ),
    "missing stored embedding": (
        "lora", {"target_modules": ["embed_tokens"]}, without(EMBEDDING), f"{EMBEDDING}' is miss",
    ),
    "missing saved module": (
        "lora", {"modules_to_save": ["lm_head"]},
        without("base_model.model.lm_head.weight"), "base_model.model.lm_head.weight' is missing",
    ),
    "added tensor": (
        "lora", {},
        tensors(lambda t: {**t, f"{Q0[:-6]}k_proj.lora_A.weight": t[f"{Q0}.lora_A.weight"] * 1}),
        "k_proj.lora_A.weight' belongs to nothing that its config names",
    ),
    "added bias": (
        "lora", {},
        tensors(lambda t: {**t, "base_model.model.model.norm.weight": torch.ones(64)}),
        "model.norm.weight' belongs to nothing",
    ),
    "renamed tensor": (
        "lora", {}, renamed(f"{Q0}.lora_A.weight", f"{Q0}.lora_C.weight"),
        f"not a module of this base: {Q0}.lora_C.weight",
    ),
    "no prefix": (
        "lora", {}, renamed(f"{Q0}.lora_A.weight", Q0.removeprefix("base_model.") + ".lora_A"),
        "not a module of this base: model.model",
    ),
    "doubled tensor": ("lora", {}, doubled, f"the name '{Q0}.lora_A.weight' occurs twice"),
    "truncated": ("lora", {}, truncated(ADAPTER), "truncated"),
    "nan": ("lora", {}, with_value(f"{Q0}.lora_A.weight", float("nan")), "A.weight' holds NaN"),
    "infinity": (
        "lora", {}, with_value(f"{Q0}.lora_B.weight", float("inf")), "lora_B.weight' holds NaN or",
    ),
    "overflow": (
        "lora", {},
        tensors(lambda t: {n: v * 1e30 if Q0 in n else v for n, v in t.items()}),
        "self_attn.q_proj: the merged weight is not finite",
    ),
    "wrong rank": ("lora", {}, config(r=5), "lora_A.weight is [4, 128], this base takes [5, 128]"),
    "wrong shape": (
        "lora", {},
        tensors(lambda t: {**t, f"{Q0}.lora_A.weight": t[f"{Q0}.lora_A.weight"][:, :32].clone()}),
        "lora_A.weight is [4, 32], this base takes [4, 64]",
    ),
    "resized vocabulary": (
        "lora", {"modules_to_save": ["lm_head"]},
        tensors(lambda t: {n: torch.ones(300, 64) if "lm_head" in n else v for n, v in t.items()}),
        "stores lm_head.weight of 300 rows, and the base has 288: a resized vocabulary needs both",
    ),
    "targets gone": ("lora", {}, config(target_modules=["qkv_proj"]), "PEFT refuses it on"),
    "pickle": ("lora", {}, pickled(ADAPTER, "adapter_model.bin"), "only adapter_model.bin, a pick"),
    "no weights": ("lora", {}, lambda f: (f / ADAPTER).unlink(), f"{ADAPTER}: no such file"),
    "no config": (
        "lora", {}, lambda f: (f / "adapter_config.json").unlink(), "no adapter_config.json",
    ),
    "config no json": (
        "lora", {}, lambda f: (f / "adapter_config.json").write_text("{"), "not valid JSON",
    ),
    "another type": ("lora", {}, config(peft_type="LOHA"), "hada_w1_a' is missing"),
    "unknown type": ("lora", {}, config(peft_type="NEW"), "peft_type NEW is none that PEFT 0.21"),
    "no type": ("lora", {}, config(peft_type=None), "no peft_type"),
    "classifier": ("lora", {}, config(task_type="SEQ_CLS"), "task_type SEQ_CLS is no text-gen"),
    "alora": ("lora", {}, config(alora_invocation_tokens=[1]), "alora_invocation_tokens: "),
    "qalora": ("lora", {}, config(use_qalora=True), "use_qalora: "),
    "arrow": ("lora", {}, config(arrow_config={"top_k": 2}), "arrow_config: "),
    "replication": (
        "lora", {}, config(layer_replication=[[0, 3]]),
        "layer_replication repeats layers 0 to 3, and the base has 2",
    ),
    "tokens": (
        "lora", {}, config(trainable_token_indices=[3]), "trainable_tokens_delta' is missing",
    ),
    "pissa": ("lora", {}, config(init_lora_weights="pissa_niter_16"), "'pissa_niter_16' moved a p"),
    "olora": ("lora", {}, config(init_lora_weights="olora"), "init_lora_weights 'olora' moved"),
    "corda": ("lora", {}, config(init_lora_weights="corda"), "init_lora_weights 'corda' moved"),
    "loftq": ("lora", {}, config(init_lora_weights="loftq"), "init_lora_weights 'loftq' moved"),
    "lora_bias without bias": ("lora", {}, config(lora_bias=True), "lora_B.bias' is missing"),
    "r is text": ("lora", {}, config(r="4"), "r is '4', not a whole number from 1"),
    "bias unknown": ("lora", {}, config(bias="some"), "bias is 'some', not none, all or lora_only"),
    "escape": (
        "lora", {},
        lambda f: ((f / ADAPTER).rename(f.parent / "x"), (f / ADAPTER).symlink_to("../x"))[0],
        "leads out of the folder",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ADAPTERS)
def test_adapter(case: str, tiny_llama: Path, tmp_path: Path) -> None:
    kind, settings, change, words = ADAPTERS[case]
    adapter = make_adapter(tiny_llama, kind, folder=tmp_path / "adapter", **settings)
    change(adapter)
    assert_refused(words, tmp_path, tiny_llama, [adapter])


# what is wrong with the base: (change, words of the message)
BASES: dict[str, tuple[Change, str]] = {
    "truncated": (truncated(WEIGHTS), "model.safetensors: truncated"),
    "missing tensor": (
        tensors(lambda t: {n: v for n, v in t.items() if n != "model.norm.weight"}, WEIGHTS),
        "tensor 'model.norm.weight' is missing; config.json calls for it",
    ),
    "strange tensor": (
        tensors(lambda t: {**t, "model.layers.9.mlp.up_proj.weight": torch.ones(2)}, WEIGHTS),
        "'model.layers.9.mlp.up_proj.weight' is none that config.json calls for",
    ),
    "nan in a copied tensor": (
        with_value("model.norm.weight", float("nan"), WEIGHTS), "'model.norm.weight' holds NaN or",
    ),
    "infinity in a merged tensor": (
        with_value("model.layers.0.self_attn.q_proj.weight", float("inf"), WEIGHTS),
        "'model.layers.0.self_attn.q_proj.weight' holds NaN or infinity (1 of 4096 values)",
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "neither model.safetensors nor model.safet"),
    "pickle": (
        pickled(WEIGHTS, "pytorch_model.bin"),
        "its weights are pickle files (pytorch_model.bin)",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: no such file"),
    "no model type": (config(model_type=None), "config.json: no model_type"),
    "family": (config(model_type="mamba"), "model type 'mamba' is not supported; supported are"),
    "classifier": (
        config(architectures=["LlamaForSequenceClassification"]),
        "LlamaForSequenceClassification is not a causal language model",
    ),
    "8-bit": (
        config(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
        "its weights are quantized (bitsandbytes 8-bit)",
    ),
    "gptq": (
        config(quantization_config={"quant_method": "gptq", "bits": 4}),
        "its weights are quantized (gptq)",
    ),
    "awq": (config(quantization_config={"quant_method": "awq"}), "weights are quantized (awq)"),
    "config misfit": (config(rms_norm_eps="small"), "config.json: transformers refuses it"),
    "other width": (config(intermediate_size=96), "is [64, 128], config.json calls for [64, 96]"),
    "4-bit without statistics": (
        config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "config.json says 4-bit weights, and none are stored",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BASES)
def test_base(case: str, tiny_llama: Path, tmp_path: Path) -> None:
    change, words = BASES[case]
    adapter = make_adapter(tiny_llama, folder=tmp_path / "adapter")
    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    change(base)
    assert_refused(words, tmp_path, base, [adapter])


def test_wrong_base(tiny_llama: Path, tiny_phi3: Path, tmp_path: Path) -> None:
    # PEFT loads it without an error, and only warns of missing keys
    adapter = make_adapter(tiny_llama, folder=tmp_path / "adapter")
    assert_refused("not a module of this base", tmp_path, tiny_phi3, [adapter])


def test_two_dora(tiny_llama: Path, tmp_path: Path) -> None:
    pair = [make_adapter(tiny_llama, kind, folder=tmp_path / kind) for kind in ("lora", "dora")]
    words = "the magnitude of DoRA makes a weighted sum undefined"
    assert_refused(words, tmp_path, tiny_llama, pair)
    assert_refused(words, tmp_path, tiny_llama, [(pair[1], 0.5)])
    assert_refused(words, tmp_path, tiny_llama, [pair[1], pair[1]])


def test_saved_modules_in_a_sum(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_llama, folder=tmp_path / "adapter", modules_to_save=["lm_head"])
    words = "base_model.model.lm_head.weight takes the base's place (modules_to_save"
    assert_refused(words, tmp_path, tiny_llama, [(adapter, 0.5)])


def test_changed_embedding_in_a_sum(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_llama, folder=tmp_path / "a", target_modules=["embed_tokens"])
    edit_tensors(adapter / ADAPTER, lambda t: {**t, EMBEDDING: t[EMBEDDING] * 1.5})
    words = f"{EMBEDDING} is not the base's own weight"
    assert_refused(words, tmp_path, tiny_llama, [(adapter, 0.5)])


def test_different_bases(tiny_llama: Path, tmp_path: Path) -> None:
    pair = [make_adapter(tiny_llama, folder=tmp_path / name) for name in "ab"]
    config(base_model_name_or_path="someone/else")(pair[1])
    words = "the adapters were trained over different bases"
    assert_refused(words, tmp_path, tiny_llama, pair)


def test_two_embeddings_for_a_tied_one(tiny_llama_tied: Path, tmp_path: Path) -> None:
    adapter = make_adapter(
        tiny_llama_tied, folder=tmp_path / "a", save={"save_embedding_layers": True}
    )
    name = "base_model.model.lm_head.weight"
    edit_tensors(adapter / ADAPTER, lambda t: {**t, name: t[name] * 2})
    words = "stores two different embeddings for its tied one"
    assert_refused(words, tmp_path, tiny_llama_tied, [adapter])


def test_one_saved_embedding_where_two_are_tied(tiny_llama_tied: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_llama_tied, folder=tmp_path / "a", modules_to_save=["lm_head"])
    config(ensure_weight_tying=True)(adapter)
    words = "embed_tokens.weight' is missing"
    assert_refused(words, tmp_path, tiny_llama_tied, [adapter])


def test_four_bit_base(tiny_llama: Path, tmp_path: Path) -> None:
    base = build_four_bit(tiny_llama, tmp_path / "base", "nf4", True)
    adapter = make_adapter(tiny_llama, folder=tmp_path / "adapter")
    assert_refused("there is no original", tmp_path, base, [adapter], USAGE, onto="original")
    words = "stored in 4 bits with double_quant True, but trained_as says False"
    assert_refused(words, tmp_path, base, [adapter], trained_as=NF4)
    merge(tmp_path / "agrees", base, [adapter], trained_as=NF4_DOUBLE)


def test_trained_as_without_an_adapter(tiny_llama: Path, tmp_path: Path) -> None:
    words = "trained_as says how the base was quantized under an adapter; there is none"
    assert_refused(words, tmp_path, tiny_llama, [], USAGE, trained_as=NF4)


@pytest.mark.parametrize(
    ("statistic", "words"),
    [
        ("absmax", "are broken ('absmax')"),
        ("nested_absmax", "does not fit its quantization state"),
        ("quant_state.bitsandbytes__nf4", "is [1024, 1], config.json calls for [32, 64]"),
    ],
)
def test_broken_four_bit_statistics(
    statistic: str, words: str, tiny_llama: Path, tmp_path: Path
) -> None:
    base = build_four_bit(tiny_llama, tmp_path / "base", "nf4", True)
    name = f"model.layers.0.self_attn.k_proj.weight.{statistic}"
    tensors(lambda t: {n: v for n, v in t.items() if n != name}, WEIGHTS)(base)
    assert_refused(words, tmp_path, base, [])


@pytest.mark.parametrize(
    ("field", "value"),
    [("blocksize", 0), ("blocksize", 48), ("quant_type", "nf5"), ("nested_dtype", "bfloat16"),
     ("nested_blocksize", 0), ("nested_blocksize", "x"), ("dtype", "nothing"), ("shape", None)],
)  # fmt: skip
def test_unsound_four_bit_state(field: str, value: Any, tiny_llama: Path, tmp_path: Path) -> None:
    base = build_four_bit(tiny_llama, tmp_path / "base", "nf4", True)
    name = "model.layers.0.self_attn.k_proj.weight.quant_state.bitsandbytes__nf4"

    def change(found: dict[str, Any]) -> dict[str, Any]:
        state = json.loads(bytes(found[name].tolist())) | {field: value}
        packed = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
        return {**found, name: packed}

    edit_tensors(base / WEIGHTS, change)
    assert_refused("quantization state" if field != "dtype" else "broken", tmp_path, base, [])


def test_short_four_bit_statistics(tiny_llama: Path, tmp_path: Path) -> None:
    # bitsandbytes' kernel would read memory that is not its own
    base = build_four_bit(tiny_llama, tmp_path / "base", "nf4", False)
    name = "model.layers.0.self_attn.k_proj.weight.absmax"
    tensors(lambda t: {n: v[:-1].clone() if n == name else v for n, v in t.items()}, WEIGHTS)(base)
    assert_refused("does not fit its quantization state", tmp_path, base, [])


def test_rounding_overflow(tiny_llama: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    tensors(lambda t: {n: v.half() for n, v in t.items()}, WEIGHTS)(base)
    adapter = make_adapter(tiny_llama, folder=tmp_path / "adapter")
    grow = tensors(lambda t: {n: v * 2000 if Q0 in n else v for n, v in t.items()})
    grow(adapter)
    merge(tmp_path / "float32", base, [adapter])
    words = "self_attn.q_proj.weight (merged, as F16)' holds NaN or infinity"
    assert_refused(words, tmp_path, base, [adapter], merge_dtype="base")


def test_type_that_is_no_weight(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_llama, folder=tmp_path / "adapter")

    def as_integers(header: dict[str, Any]) -> dict[str, Any]:
        header[f"{Q0}.lora_A.weight"]["dtype"] = "I32"
        return header

    edit_header(adapter / ADAPTER, as_integers)
    assert_refused("lora_A.weight has dtype I32", tmp_path, tiny_llama, [adapter])


def assert_refused(
    words: str, tmp_path: Path, base: Path, adapters: Any, code: int = INPUT_REFUSED, **options: Any
) -> None:
    out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    with pytest.raises(EdgetuneError) as caught:
        merge(out, base, adapters, **options)
    assert words in caught.value.message
    assert caught.value.exit_code == code
    shutil.rmtree(out, ignore_errors=True)
