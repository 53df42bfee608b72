"""What a user can get wrong, one row each: how it is built, the command, the exit code, the words.

Nothing is started, and the output folder stays as it was. To add a row: a function that spoils the
`World`, and a line in `ROWS`. What needs a step to be noticed is in tests/merge/test_refusals.py;
mistakes on the command line itself are in tests/test_cli.py.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgetune.__main__ import run
from edgetune.files import shipped_folder
from tests.environments.conftest import write_qemu
from tests.tiny import edit_header, edit_tensors, make_adapter
from tests.tiny_package import VARIANT, write_parts

BUILD = "build -m {base} -a {adapter} -d generic-x86-64 -o {out} --plan"
RECIPE = "build {tmp}/r.yaml -d generic-x86-64 -o {out} --plan"
DATA = BUILD + " --data {tmp}/d.jsonl"
ADAPTER, WEIGHTS = "adapter_model.safetensors", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
Q0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@dataclass(frozen=True)
class World:
    """A sound base and adapter of the row's own, in a folder `tmp`; `out` is not there yet."""

    tmp: Path

    @property
    def base(self) -> Path:
        return self.tmp / "base"

    @property
    def adapter(self) -> Path:
        return self.tmp / "adapter"

    @property
    def out(self) -> Path:
        return self.tmp / "out"


Spoil = Callable[[World], Any]


def config(target: str, **changes: Any) -> Spoil:
    """Change fields of a JSON file, named from `tmp`."""

    def spoil(world: World) -> None:
        file = world.tmp / target
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return spoil


def base_config(**changes: Any) -> Spoil:
    return config("base/config.json", **changes)


def adapter_config(**changes: Any) -> Spoil:
    return config("adapter/adapter_config.json", **changes)


def write(target: str, content: str | bytes) -> Spoil:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda world: (world.tmp / target).write_bytes(data)


def remove(*targets: str) -> Spoil:
    return lambda world: [(world.tmp / target).unlink() for target in targets]


def rename(target: str, name: str) -> Spoil:
    return lambda world: (world.tmp / target).rename((world.tmp / target).with_name(name))


def only(target: str, name: str) -> Spoil:
    """Weights of this name alone, of no known content."""
    return both(rename(target, name), lambda w: (w.tmp / target).with_name(name).write_bytes(b"x"))


def folder(target: str) -> Spoil:
    def spoil(world: World) -> None:
        if (world.tmp / target).exists():
            (world.tmp / target).unlink()
        (world.tmp / target).mkdir(parents=True)

    return spoil


def link(target: str, to: str) -> Spoil:
    def spoil(world: World) -> None:
        (world.tmp / target).rename(world.tmp / "elsewhere")
        (world.tmp / target).symlink_to(to)

    return spoil


def both(*spoils: Spoil) -> Spoil:
    return lambda world: [spoil(world) for spoil in spoils]


def cut(target: str, count: int) -> Spoil:
    return lambda w: (w.tmp / target).write_bytes((w.tmp / target).read_bytes()[:count])


def tensors(target: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Spoil:
    return lambda world: edit_tensors(world.tmp / target, change)


def header(target: str, change: Callable[[dict[str, Any]], Any]) -> Spoil:
    return lambda world: edit_header(world.tmp / target, change)


def sharded(**weight_map: str) -> Spoil:
    """The base's weights under an index that says this."""

    def spoil(world: World) -> None:
        (world.base / WEIGHTS).rename(world.base / "model-00001-of-00002.safetensors")
        (world.base / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    return spoil


def copied(name: str, **changes: Any) -> Spoil:
    """A second adapter beside the first, its config changed."""

    def spoil(world: World) -> None:
        shutil.copytree(world.adapter, world.tmp / name)
        edit_tensors(
            world.tmp / name / ADAPTER, lambda found: {n: t * 0.5 for n, t in found.items()}
        )
        config(f"{name}/adapter_config.json", **changes)(world)

    return spoil


def recipe(**changes: Any) -> Spoil:
    """A recipe; JSON is YAML."""
    values = {"base": "base", "adapters": ["adapter"], **changes}
    return write("r.yaml", "".join(f"{k}: {json.dumps(v)}\n" for k, v in values.items()))


def device(old: str, new: str) -> Spoil:
    """A shipped profile, spoilt."""
    text = (shipped_folder("devices") / "raspberry-pi-5.yaml").read_text(encoding="utf-8")
    assert old in text
    return write("box.yaml", text.replace("raspberry-pi-5", "box").replace(old, new, 1))


def data(*rows: Any) -> Spoil:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    return write("d.jsonl", "\n".join(lines))


def cached(identifier: str, *files: str) -> Spoil:
    """A hub's cache that has `main` of a repository, with these files of this world."""

    def spoil(world: World) -> None:
        place = world.tmp / "hub" / f"models--{identifier.replace('/', '--')}"
        snapshot = place / "snapshots" / COMMIT
        for made in (snapshot, place / "refs"):
            made.mkdir(parents=True)
        (place / "refs" / "main").write_text(COMMIT)
        for file in files:
            shutil.copyfile(world.tmp / file, snapshot / Path(file).name)

    return spoil


def packaged(world: World) -> None:
    """A package that says what it is, and no more."""
    (world.tmp / "package" / VARIANT).mkdir(parents=True)
    (world.tmp / "package" / VARIANT / "genai_config.json").write_text("{}")
    write_parts(world.tmp / "package")


def emulator(world: World) -> None:
    """A QEMU that only says which processors it has."""
    write_qemu(world.tmp / "bin")


def nothing(world: World) -> None:
    """Nothing is spoilt: the command line itself asks for too much."""


COMMIT = "1" * 40
HUB = BUILD.replace("{base}", "acme/tiny")
COMBINE = {"adapters": ["adapter", "other"]}
TURN = {"role": "user", "content": "hello"}
CHAT = {"messages": [TURN, {"role": "assistant", "content": "hello"}]}
BOX = "build -m {base} -a {adapter} -d {tmp}/box.yaml -o {out} --plan"
TWO = "build -m {base} -a {adapter} -a {tmp}/other -d generic-x86-64 -o {out} --plan"
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
NO_TEMPLATE = both(remove("base/chat_template.jinja"), data(CHAT))

# {what is wrong: (how it is made, command, exit code, words of the message)}
ROW = '{"text": "Where is the order?"}'

ROWS: dict[str, tuple[Spoil, str, int, str]] = {
    # bases: what they are
    "base is GPTQ": (base_config(quantization_config=GPTQ), BUILD, 4, "quantized (gptq)"),
    "base is AWQ": (
        base_config(quantization_config={"quant_method": "awq", "bits": 4}), BUILD, 4, "(awq)"),
    "base is MLX": (base_config(quantization={"group_size": 64, "bits": 4}), BUILD, 4, "(MLX)"),
    "base is MLX, newer": (
        base_config(quantization_config={"group_size": 64, "bits": 4}), BUILD, 4, "(MLX)"),
    "base is GGUF": (
        only(f"base/{WEIGHTS}", "model-q4.gguf"), BUILD, 4, "model-q4.gguf is GGUF, the format"),
    "base is a GGUF file": (
        write("m.gguf", "GGUF"), BUILD.replace("{base}", "{tmp}/m.gguf"), 4, "m.gguf is GGUF"),
    "base is a safetensors file": (
        nothing, BUILD.replace("{base}", "{base}/model.safetensors"), 4, "no model folder; model"),
    "base is TensorFlow": (only(f"base/{WEIGHTS}", "tf_model.h5"), BUILD, 4, "is TensorFlow's"),
    "base is Flax": (only(f"base/{WEIGHTS}", "flax_model.msgpack"), BUILD, 4, "is Flax's"),
    "base is ONNX": (only(f"base/{WEIGHTS}", "model.onnx"), BUILD, 4, "is an ONNX graph"),
    "base is pickled": (
        only(f"base/{WEIGHTS}", "pytorch_model.bin"), BUILD, 4, "its weights are pickle files"),
    "base is safetensors named .bin": (
        rename(f"base/{WEIGHTS}", "pytorch_model.bin"), BUILD, 4, "a safetensors file under anoth"),
    "base is a classifier": (
        base_config(architectures=["LlamaForSequenceClassification"]), BUILD, 4, "not a causal"),
    "base is of another family": (
        base_config(model_type="mamba"), BUILD, 4, "model type 'mamba' is not supported; suppo"),
    "base is Phi-3-small": (
        base_config(model_type="phi3small", auto_map={"AutoConfig": "configuration_phi3_small.C"}),
        BUILD, 4, "Phi-3-small is code in its own repository; take Phi-3-mini or -medium"),
    "base is code of its own": (
        base_config(model_type="new", auto_map={"AutoModelForCausalLM": "modeling_new.NewModel"}),
        BUILD, 4, "it is code of its own (modeling_new.py), which edgetune never runs"),
    "base is a mixture of experts": (
        base_config(model_type="mixtral", architectures=["MixtralForCausalLM"]),
        BUILD, 4, "mixtral is a mixture of experts: it can be merged, not exported"),
    "base sees images": (
        base_config(model_type="gemma3", architectures=["Gemma3ForConditionalGeneration"]),
        BUILD, 4, "a Gemma-3 for text and images; save its text part alone"),
    "base is an adapter": (
        nothing, BUILD.replace("{base}", "{adapter}"), 4, "config.json: no such file"),
    # bases: what is broken
    "shard cut": (cut(f"base/{WEIGHTS}", 40_000), BUILD, 4, "truncated: its tensors need"),
    "shard cut in its header": (cut(f"base/{WEIGHTS}", 99), BUILD, 4, "truncated: its header"),
    "weights empty": (cut(f"base/{WEIGHTS}", 0), BUILD, 4, "truncated: 0 bytes"),
    "weights are a page of HTML": (
        write(f"base/{WEIGHTS}", b"<!DOCTYPE html>" * 9), BUILD, 4, "its header claims"),
    "weights are a Git LFS pointer": (
        write(f"base/{WEIGHTS}", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        BUILD, 4, "a Git LFS pointer"),
    "weights are a folder": (folder(f"base/{WEIGHTS}"), BUILD, 4, "no such file"),
    "weights lead out": (link(f"base/{WEIGHTS}", "../elsewhere"), BUILD, 4, "leads out of the"),
    "weights link to themselves": (link(f"base/{WEIGHTS}", WEIGHTS), BUILD, 4, "is no name of a"),
    "tokenizer leads out": (
        link("base/tokenizer.json", "../elsewhere"), BUILD, 4, "'tokenizer.json' leads out"),
    "index names a file elsewhere": (
        sharded(x="../x.safetensors"), BUILD, 4, "'../x.safetensors' leads out of the folder"),
    "index names no file here": (
        sharded(x="model-00002-of-00002.safetensors"), BUILD, 4, "no such file"),
    "index names a tensor that is not there": (
        sharded(x="model-00001-of-00002.safetensors"), BUILD, 4, "tensor 'x' is not in model-0"),
    "index names a pickle": (sharded(x="pytorch_model.bin"), BUILD, 4, "not a safetensors file"),
    "config missing": (remove("base/config.json"), BUILD, 4, "config.json: no such file"),
    "config empty": (write("base/config.json", ""), BUILD, 4, "config.json: not valid JSON"),
    "config with a byte order mark": (
        write("base/config.json", b"\xef\xbb\xbf{}"), BUILD, 4, "config.json: not valid JSON"),
    "config a folder": (folder("base/config.json"), BUILD, 4, "config.json: no such file"),
    "config with text for a number": (
        base_config(num_attention_heads="4"), BUILD, 4, "num_attention_heads is '4', not a whole"),
    "config with more layers than tensors": (
        base_config(num_hidden_layers=60_000), BUILD, 4, "and only 21 tensors are stored"),
    "config with an unknown dtype": (
        base_config(dtype="float4"), BUILD, 4, "dtype is 'float4', not one of float64, float32"),
    "tokenizer missing": (
        remove("base/tokenizer.json"), BUILD, 4, "no tokenizer (tokenizer.json)"),
    "rotary scaling that is lost": (
        base_config(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4}), BUILD, 4,
        "rotary embeddings of the kind 'dynamic' cannot be exported"),
    "rotary share of a type of layer": (
        base_config(
            model_type="gemma3_text",
            rope_parameters={"full_attention": {"partial_rotary_factor": "all"}}),
        BUILD, 4, "rope_parameters.full_attention.partial_rotary_factor is 'all', not a number"),
    # adapters
    "adapter is a file": (
        nothing, BUILD.replace("{adapter}", f"{{adapter}}/{ADAPTER}"), 4, "no adapter folder; a"),
    "adapter is a model": (
        nothing, BUILD.replace("{adapter}", "{base}"), 4, "no adapter_config.json"),
    "adapter is pickled": (
        only(f"adapter/{ADAPTER}", "adapter_model.bin"), BUILD, 4, "only adapter_model.bin"),
    "adapter is safetensors named .bin": (
        rename(f"adapter/{ADAPTER}", "adapter_model.bin"), BUILD, 4, "under another name"),
    "adapter is no pickle": (
        only(f"adapter/{ADAPTER}", "adapter_model.bin"), BUILD + " --allow-pickle", 4,
        "adapter_model.bin: not a PyTorch file"),
    "adapter without weights": (remove(f"adapter/{ADAPTER}"), BUILD, 4, f"{ADAPTER}: no such fi"),
    "adapter cut": (cut(f"adapter/{ADAPTER}", 5_000), BUILD, 4, "truncated"),
    "adapter of another rank": (adapter_config(r=8), BUILD, 4, "is [4, 128], this base takes [8"),
    "adapter of another base": (
        header(
            f"adapter/{ADAPTER}", lambda h: {k.replace("q_proj", "qkv"): v for k, v in h.items()}
        ),
        BUILD, 4, "not a module of this base"),
    "adapter of another width": (
        tensors(f"adapter/{ADAPTER}", lambda t: {**t, Q0: t[Q0][:, :32].clone()}),
        BUILD, 4, "is [4, 32], this base takes [4, 64]"),
    "adapter without tensors": (
        tensors(f"adapter/{ADAPTER}", lambda t: {}), BUILD, 4, "no tensors"),
    "adapter of integers": (
        header(f"adapter/{ADAPTER}", lambda h: {**h, Q0: {**h[Q0], "dtype": "I32"}}),
        BUILD, 4, "has dtype I32"),
    "adapter of prompts": (
        adapter_config(peft_type="PROMPT_TUNING"), BUILD, 4, "PROMPT_TUNING (prompt tuning): it"),
    "adapter of prompts, encoded": (
        adapter_config(peft_type="P_TUNING"), BUILD, 4, "P_TUNING (P-tuning): it learned virtual"),
    "adapter of adapters": (
        adapter_config(peft_type="XLORA"), BUILD, 4, "XLORA (X-LoRA): it mixes its LoRA adapters"),
    "adapter of an unknown type": (
        adapter_config(peft_type="NEXTLORA"), BUILD, 4, "peft_type NEXTLORA is none that PEFT"),
    "adapter of HRA with a pattern that never ends": (
        adapter_config(peft_type="HRA", exclude_modules="(([a-z_.0-9])*)*#"), BUILD, 4,
        "exclude_modules is a pattern that takes more than 1 second"),
    "adapter of OSF with a broken pattern": (
        adapter_config(peft_type="OSF", rank_pattern={"*q_proj": 4}), BUILD, 4,
        "rank_pattern is no regular expression"),
    "adapter of DeLoRA with text for a number": (
        adapter_config(peft_type="DELORA", lambda_pattern={"q_proj": "4"}), BUILD, 4,
        "lambda_pattern is {'q_proj': '4'}, not a mapping of numbers"),
    "adapter of PiSSA over the plain base": (
        adapter_config(init_lora_weights="pissa"), BUILD, 4,
        "init_lora_weights 'pissa' moved a part of the base's weights into the adapter"),
    "adapter with endless layers": (
        adapter_config(layer_replication=[[0, 2]] * 9999), BUILD, 4, "4096 in all at most"),
    "adapter of a classifier": (adapter_config(task_type="SEQ_CLS"), BUILD, 4, "SEQ_CLS is no"),
    "adapter with a pattern that never ends": (
        adapter_config(target_modules="(([a-z_.0-9])*)*#"), BUILD, 4, "takes more than 1 second"),
    "adapter with a broken pattern": (
        adapter_config(target_modules="(q_proj"), BUILD, 4, "target_modules is no regular expr"),
    "adapter leads out": (link(f"adapter/{ADAPTER}", "../elsewhere"), BUILD, 4, "leads out of"),
    "adapter twice": (
        lambda w: shutil.copytree(w.adapter, w.tmp / "other"), TWO, 2, "the same weights as"),
    "adapters of two bases": (
        copied("other", base_model_name_or_path="someone/else"), TWO, 4, "over different bases"),
    "two DoRA": (copied("other", use_dora=True), TWO, 4, "the magnitude of DoRA makes a weighted"),
    "two adapters in one folder": (
        both(copied("both/one"), copied("both/two")),
        BUILD.replace("{adapter}", "{tmp}/both"), 4, "holds several adapters (one, two)"),
    # combinations
    "combination of DoRA": (
        both(copied("other"), adapter_config(use_dora=True),
             recipe(**COMBINE, combine={"how": "svd"})),
        RECIPE, 4, "combine: svd: PEFT combines A and B, and leaves the magnitudes of DoRA out"),
    "combination unknown": (
        both(copied("other"), recipe(**COMBINE, combine={"how": "soup"})),
        RECIPE, 2, "combine.how: input should be 'cat', 'svd', 'ties'"),
    "combination of too much": (
        both(copied("other"), recipe(**COMBINE, combine={"how": "ties", "density": 1.5})),
        RECIPE, 2, "combine.density: input should be less than or equal to 1, got 1.5"),
    "combination without density": (
        both(copied("other"), recipe(**COMBINE, combine={"how": "ties"})),
        RECIPE, 2, "combine: ties needs a density"),
    "combination of one": (
        recipe(combine={"how": "svd"}), RECIPE, 2, "combine: svd needs two adapters or more"),
    # hub ids
    "hub without a revision of a model in its cache": (
        cached("acme/tiny"), HUB.replace("tiny", "tiny@v2"), 3, "the hub's cache has main of it"),
    "hub with a model in part": (
        cached("acme/tiny", "base/config.json"), HUB, 4, "if a download broke off, delete"),
    "hub with an adapter that may be pickled": (
        cached("acme/lora", "adapter/adapter_config.json"),
        BUILD.replace("{adapter}", "acme/lora"), 4, "--allow-pickle downloads and reads them"),
    "hub id with a strange revision": (nothing, HUB.replace("tiny", "tiny@../x"), 4, "is no revi"),
    "hub out of reach": (
        nothing, BUILD.replace("{base}", "no-one/nothing-at-all"), 3, "the hub is out of reach"),
    "hub id with a space": (nothing, ["build", "-m", "my model", "--plan"], 4, "no such model f"),
    "hub id with a path": (
        nothing, BUILD.replace("{base}", "owner/name/more"), 4, "no such model folder"),
    "revision of a folder": (
        recipe(base={"path": "base", "revision": "main"}), RECIPE, 2, "a folder has no revision"),
    "revision twice": (
        recipe(base={"path": "acme/tiny@v1", "revision": "v2"}), RECIPE, 2, "names one revision"),
    # recipes
    "recipe whose base is to be made": (
        recipe(base={"path": "made", "made_by": "python make_base.py"}), RECIPE, 3,
        "the recipe's base is not here; it is made, not shipped\nhint: make it: python make_base"),
    "recipe with a typo": (recipe(adaptors=[]), RECIPE, 2, "did you mean 'adapters'?"),
    "recipe without a base": (write("r.yaml", "adapters: []\n"), RECIPE, 2, "base is missing"),
    "recipe with an endless weight": (
        write("r.yaml", "base: base\nadapters: [{path: adapter, weight: .inf}]\n"),
        RECIPE, 2, "adapters.0.weight: input should be a finite number"),
    "recipe with weight 0": (
        recipe(adapters=[{"path": "adapter", "weight": 0.0}]), RECIPE, 2, "its weight is 0"),
    "recipe that is JSON lines": (write("r.yaml", '{"a": 1}\n{"b": 2}\n'), RECIPE, 2, "not valid"),
    "recipe in Latin-1": (write("r.yaml", "base: b\xe4se\n".encode("latin-1")), RECIPE, 2, "UTF-8"),
    "recipe with tabs": (write("r.yaml", "base:\n\tpath: x\n"), RECIPE, 2, "not valid YAML"),
    "recipe with laughing aliases": (
        write("r.yaml", "a: &a [x, x]\n" + "".join(
            f"b{n}: &b{n} [*{'a' if n == 0 else f'b{n - 1}'}, *{'a' if n == 0 else f'b{n - 1}'}]\n"
            for n in range(30))),
        RECIPE, 2, "more than 10000 values"),
    "recipe is a folder": (folder("r.yaml"), RECIPE, 2, "no such recipe file"),
    "recipe with a base before and adapters": (
        recipe(base_before="base"), RECIPE, 2, "base_before is for a full fine-tune"),
    "recipe with a strict tolerance": (
        recipe(tolerances={"retention": 1.5}), RECIPE, 2, "less than or equal to 1, got 1.5"),
    "recipe with two group sizes": (
        recipe(scheme="w8a16-rtn-g128", group_size=64), RECIPE, 2, "another group size than"),
    # schemes, how the base was trained, types
    "8-bit cache with a sliding window": (
        base_config(model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=24),
        BUILD + " --kv-cache int8", 2, "kv_cache: int8 does not run where attention has a sliding",
    ),
    "scheme unknown": (nothing, BUILD + " --scheme int4", 2, "no scheme is called 'int4'"),
    "group size for fp32": (nothing, BUILD + " --scheme fp32-g32", 2, "quantizes nothing, so it"),
    "group size of no kernel": (nothing, BUILD + " --scheme w4a16-rtn-g48", 2, "no group size 48"),
    "trained as 8 bits": (nothing, BUILD + " --trained-as int8", 2, "--trained-as int8: not of"),
    "trained as something, without adapter": (
        nothing, "build -m {base} -o {out} --trained-as nf4 --plan", 2, "there is none"),
    "plain weights called 4-bit": (
        base_config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        BUILD, 4, "config.json says 4-bit weights, and none are stored"),
    # data
    "data missing": (nothing, DATA, 2, "d.jsonl: no such file"),
    "data calibrated on": (
        both(write("e.jsonl", ROW), write("c.jsonl", "\n" + ROW.replace("the", "THE")),
             recipe(data={"evaluation": "e.jsonl", "calibration": "c.jsonl"})), RECIPE, 2,
        "1 of 1 rows of the evaluation data are in the calibration data too: line 1 is line 2 of"),
    "data empty": (write("d.jsonl", ""), DATA, 2, "the file is empty, there is nothing to score"),
    "data a folder": (folder("d.jsonl"), DATA, 2, "d.jsonl: cannot be read"),
    "data in UTF-16": (write("d.jsonl", '{"text": "a"}'.encode("utf-16")), DATA, 2, "not UTF-8"),
    "data one JSON list": (write("d.jsonl", '[{"text": "a"}]'), DATA, 2, "found a list"),
    "data with CRLF and a broken line": (
        write("d.jsonl", b'\xef\xbb\xbf{"text": "a"}\r\n{"text": \r\n'), DATA, 2, ":2: not JSON"),
    "data with other names": (
        data({"instruction": "a", "output": "b"}), DATA, 2, "did you mean 'prompt' for 'instr"),
    "data with an unknown role": (
        data({"messages": [TURN, {"role": "bot", "content": "x"}]}), DATA, 2, "no turn with role"),
    "data with an empty answer": (
        data({"prompt": "a", "completion": ""}), DATA, 2, "`completion` is empty"),
    "chats without a template": (NO_TEMPLATE, DATA, 2, "has no chat template"),
    "calibration data broken": (
        both(data("x"), recipe(data={"calibration": "d.jsonl"})), RECIPE, 2, "calibration data: "),
    # devices
    "device with a typo": (nothing, BUILD.replace("x86-64", "x86_64"), 2, "did you mean 'generic"),
    "device profile missing": (nothing, BOX, 2, "no device is called"),
    "device without memory": (device("memory_gb:", "memory:"), BOX, 2, "did you mean 'memory_gb'"),
    "device of unknown cores": (
        device("intra_op_num_threads: 4", "intra_op_num_threads: many"), BOX, 2, "valid integer"),
    "device with negative memory": (
        device("memory_gb: {value: 8", "memory_gb: {value: -8"), BOX, 2, "greater than 0"),
    "device of another architecture": (
        device("arch: aarch64", "arch: riscv64"), BOX, 2, "should be 'x86_64' or 'aarch64'"),
    "device too small": (
        device("memory_gb: {value: 8", "memory_gb: {value: 0.1"), BOX, 2, "box has 0.1 GB"),
    "device with an unknown provider": (
        device("CPUExecutionProvider", "MagicExecutionProvider"), BOX, 2, "MagicExecutionProvider"),
    "device with an unknown processor to emulate": (
        both(emulator, device("cpu: cortex-a76}", "cpu: cortex-a99}")), BOX, 2,
        "knows no processor 'cortex-a99'"),
    "emulation of an unknown device": (
        packaged, "validate {tmp}/package --emulate raspberry-pi-55", 2, "no device is called 'r"),
    "emulation of what nothing emulates": (
        both(packaged, device("emulate: {cpu: cortex-a76}", "not_emulated: too new")),
        "validate {tmp}/package --emulate {tmp}/box.yaml", 2, "cannot be emulated: too new"),
    # output folders
    "out is a file": (write("out", "mine"), BUILD, 2, "holds something else"),
    "out below a file": (
        write("file", "mine"), BUILD.replace("{out}", "{tmp}/file/out"), 2, "is a file, so"),
    "out holds something else": (
        both(folder("out"), write("out/mine.txt", "mine")), BUILD, 2, "writes into its own only"),
    "something else in the package's place": (
        both(folder("out/steps"), write("out/steps/CACHEDIR.TAG", "x"), folder("out/adapter")),
        BUILD, 2, "in the way, and not a package"),
    # other commands
    "inspect a file": (nothing, "inspect {base}/config.json", 4, "neither a model, an adapter"),
    "inspect an empty folder": (folder("empty"), "inspect {tmp}/empty", 4, "neither a model"),
    "inspect a broken base": (cut(f"base/{WEIGHTS}", 9), "inspect {base}", 4, "truncated"),
    "validate a model": (nothing, "validate {base}", 4, "SHA256SUMS"),
    "run a model": (nothing, "run {base} hello", 4, "SHA256SUMS"),
}  # fmt: skip


@pytest.fixture(scope="session")
def sound(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and an adapter, to be copied."""
    place = tmp_path_factory.mktemp("sound")
    shutil.copytree(tiny_llama, place / "base")
    make_adapter(tiny_llama, folder=place / "adapter")
    return place


@pytest.fixture
def world(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "w" / "hub"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'w' / 'bin'}{os.pathsep}{os.environ['PATH']}")
    shutil.copytree(sound, tmp_path / "w")
    return World(tmp_path / "w")


def picture(folder: Path) -> dict[str, Any]:
    """Everything below a folder: what it is, and of files the content."""
    return {
        str(path): os.readlink(path) if path.is_symlink()  # noqa: PTH115
        else path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }  # fmt: skip


def told_by(command: str | list[str], world: World) -> tuple[int, list[str]]:
    places = {"base": world.base, "adapter": world.adapter, "out": world.out, "tmp": world.tmp}
    words = command.split() if isinstance(command, str) else command
    return run([word.format(**places) for word in words]), words


def test_the_sound_world_is_planned(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert told_by(BUILD, world)[0] == 0, capsys.readouterr().err


@pytest.mark.parametrize("row", ROWS)
def test_bad_input(row: str, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, command, code, words = ROWS[row]
    spoil(world)
    before = picture(world.tmp)
    capsys.readouterr()
    found, _ = told_by(command, world)
    told = capsys.readouterr()
    assert words in told.err
    assert found == code
    lines = told.err.splitlines()
    assert len([line for line in lines if line.startswith("error: ")]) == 1, told.err
    assert len([line for line in lines if line.startswith("hint: ")]) == 1, told.err
    assert "Traceback" not in told.err
    assert "edgetune itself failed" not in told.err
    assert not told.out
    assert picture(world.tmp) == before


def test_there_are_rows_enough_and_no_two_the_same() -> None:
    assert len(ROWS) > 40
    assert len({(row[1] if isinstance(row[1], str) else "", row[3]) for row in ROWS.values()}) > 40


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
@pytest.mark.parametrize("target", ["base/config.json", f"adapter/{ADAPTER}", f"base/{WEIGHTS}"])
def test_permission_denied(target: str, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    (world.tmp / target).chmod(0)
    assert told_by(BUILD, world)[0] == 4
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("place", ["adapter", "base"])
def test_weights_that_are_no_numbers(
    place: str, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one mistake that only the merge sees."""

    def spoil(found: dict[str, Any]) -> dict[str, Any]:
        found[min(found)].reshape(-1)[0] = float("nan")
        return found

    edit_tensors(world.tmp / place / (ADAPTER if place == "adapter" else WEIGHTS), spoil)
    assert told_by(BUILD.replace("--plan", "--until merge"), world)[0] == 4
    assert "holds NaN or infinity (1 of" in capsys.readouterr().err
    assert not list((world.out / "steps").glob("merge-*"))
