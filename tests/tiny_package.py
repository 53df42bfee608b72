"""A whole tiny package: a random two-layer Llama, built by onnxruntime-genai's own builder, with a
self-test measured in torch. About five seconds, once a session; tests that damage it take a copy.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetune.checksums import write_checksums
from edgetune.files import dump_json, write_text
from tests.tiny import build_base

VARIANT = "cpu-w8a16-rtn"
END = 259
TOP_K = 16
MAX_NEW_TOKENS = 12
PROMPTS = ("Where is the kitchen?", "Two cakes, please.", "It is late", "Hello there", "a", "b c")
_built: dict[Path, Path] = {}


def tiny_package(factory: pytest.TempPathFactory) -> Path:
    """The package, built on the first call of a session. Not to be written to."""
    home = factory.getbasetemp()
    if home not in _built:
        _built[home] = _build(factory.mktemp("tiny-package"))
    return _built[home]


def copy_of(package: Path, target: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(package, target))


def sign(package: Path) -> None:
    """Make the checksums hold again, as somebody who repacks a damaged package would."""
    write_checksums(package)


def _build(folder: Path) -> Path:
    import torch

    model = _random_model(folder / "checkpoint", seed=0)
    package = folder / "tiny"
    _build_graph(folder / "checkpoint", package / VARIANT, folder / "cache")
    base = _random_model(folder / "base", seed=1)
    _write_self_test(package / "self_test", folder / "checkpoint", model, base, torch)
    (folder / "reference").mkdir()
    shutil.move(package / "self_test" / "logprobs.npy", folder / "reference" / "logprobs.npy")
    write_parts(package)
    return package


def write_parts(package: Path) -> None:
    """Manifest, devices, lock, limits and checksums."""
    variant = {"variant_directory": VARIANT, "ep": "CPUExecutionProvider", "device": "cpu"}
    devices = {"generic-x86-64": {"variant": VARIANT}, "this-machine": {"variant": VARIANT}}
    manifest = {
        "schema_version": "1.0",
        "package_name": "tiny",
        "layout": "portable",
        "components": {"model": {"variants": {VARIANT: variant}}},
        "additional_metadata": {"edgetune": {"version": "0", "devices": devices}},
    }
    write_text(package / "manifest.json", dump_json(manifest))
    session = {"variant": VARIANT, "session": {"intra_op_num_threads": 1}}
    write_text(package / "devices" / "generic-x86-64.json", dump_json(session))
    lock = {"recipe": {"name": "tiny"}, "base": {"name": "base"}, "adapters": [{"name": "a"}]}
    write_text(package / "edgetune.lock", dump_json(lock))
    limits = {
        "tolerances": {"retention": 0.95, "kl_mean": 0.05, "task_metric_drop": 0.9},
        "budgets": {"time_to_answer_ratio": 1.0, "ttft_ms": 10_000.0, "package_bytes": 10**9},
        "require_on_device": False,
        "base_bytes": 1_000_000,
    }
    write_text(package / "self_test" / "limits.json", dump_json(limits))
    sign(package)


def _random_model(folder: Path, seed: int) -> Any:
    from transformers import AutoModelForCausalLM

    # Large weights, so that the random model has opinions.
    build_base(folder, dtype="float32", seed=seed, initializer_range=0.3)
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()


def _build_graph(checkpoint: Path, out: Path, cache: Path) -> None:
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    source = str(checkpoint)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        options = parse_extra_options(
            source, source, str(out), "int8", "cpu", str(cache), ["prune_lm_head=true"]
        )
        create_model(source, source, str(out), "int8", "cpu", str(cache), **options)


def _write_self_test(folder: Path, checkpoint: Path, model: Any, base: Any, torch: Any) -> None:
    from transformers import AutoTokenizer

    from edgetune.reference.tokenizer_cases import special_tokens

    tokenizer = AutoTokenizer.from_pretrained(str(checkpoint))
    folder.mkdir()
    items, rows, base_rows = [], [], []
    for number, text in enumerate(PROMPTS):
        turns = [{"role": "user", "content": text}]
        prompt_text = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        prompt = tokenizer.encode(prompt_text, add_special_tokens=False)
        answer_ids = _greedy(model, prompt, torch)
        # Half of the targets are what the model says itself.
        target = (answer_ids or [END])[:4] if number % 2 else [70, 71, 73, END]
        logits, base_logits = (_logits(m, prompt, target, torch) for m in (model, base))
        answer = tokenizer.decode(answer_ids, skip_special_tokens=True)
        rows.append(logits)
        base_rows.append(base_logits)
        picked = logits[np.arange(len(target)), target]
        items.append(
            {
                "id": str(number + 1),
                "prompt_ids": prompt,
                "target_ids": target,
                "prompt_text": prompt_text,
                "answer": answer if number % 2 else "something else",
                "reference_answer": answer,
                "base_answer": "nothing",
                "reference_exact": bool(number % 2),
                "base_exact": False,
                "reference_answer_logprob": float(picked.mean()),
                "base_answer_logprob": float(base_logits[np.arange(len(target)), target].mean()),
            }
        )
    _write_arrays(folder, np.concatenate(rows), np.concatenate(base_rows), items)
    lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    write_text(folder / "items.jsonl", lines)
    texts = ("hello", "  a\n\n", "汉字 שלום 😀", "<|end|> x", "nul\0here")
    encoded = [(text, tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    turns = [{"role": "user", "content": 'say "x"\n<|end|>'}]
    template = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    cases = {
        "encode": [{"text": text, "ids": ids} for text, ids in encoded],
        "decode": [
            {"ids": ids, "text": tokenizer.decode(ids, skip_special_tokens=True)}
            for _, ids in encoded[:-1]
        ],
        "template": [
            {
                "messages": turns,
                "add_generation_prompt": True,
                "text": template,
                "ids": tokenizer.encode(template, add_special_tokens=False),
            }
        ],
        "template_uses_date": False,
        "special_tokens": special_tokens(tokenizer),
        "bos": {"template": False, "tokenizer": False},
    }
    write_text(folder / "tokenizer_cases.json", dump_json(cases))


def _write_arrays(folder: Path, logprobs: Any, base: Any, items: list[dict[str, Any]]) -> None:
    targets = np.array([token for item in items for token in item["target_ids"]])
    top = np.argsort(-logprobs, axis=1, kind="stable")[:, :TOP_K]
    top_logprobs = np.take_along_axis(logprobs, top, axis=1)
    rest = np.log(1 - np.exp(top_logprobs.astype(np.float64)).sum(axis=1))
    p, q = logprobs.astype(np.float64), base.astype(np.float64)
    arrays = {
        "logprobs": logprobs,
        "top_ids": top.astype("<i4"),
        "top_logprobs": top_logprobs,
        "rest_logprob": rest.astype("<f4"),
        "target_logprob": logprobs[np.arange(len(targets)), targets],
        "base_kl": (np.exp(p) * (p - q)).sum(axis=1).astype("<f4"),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)
    head = {
        "task": "text-generation",
        "source": "evaluation data",
        "vocabulary_size": logprobs.shape[1],
        "top_k": TOP_K,
        "items": len(items),
        "positions": len(targets),
        "seed": 0,
        "max_new_tokens": MAX_NEW_TOKENS,
        "eos_token_ids": [END],
        "generation": {"do_sample": None, "temperature": None},
        "metrics": {"exact_match": {"n": len(items)}, "answer_logprob": {"n": len(items)}},
    }
    write_text(folder / "self_test.json", dump_json(head))


def _logits(model: Any, prompt: list[int], target: list[int], torch: Any) -> Any:
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *target[:-1]]])).logits[0, len(prompt) - 1 :]
        return torch.log_softmax(logits.double(), -1).float().numpy()


def _greedy(model: Any, prompt: list[int], torch: Any) -> list[int]:
    ids: list[int] = []
    with torch.inference_mode():
        for _ in range(MAX_NEW_TOKENS):
            token = int(model(torch.tensor([[*prompt, *ids]])).logits[0, -1].argmax())
            if token == END:
                break
            ids.append(token)
    return ids
