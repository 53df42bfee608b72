"""Tiny models, built once a session, for every room; heavy libraries load in the fixtures only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny matrices: more threads only wait
# A busy machine is no failure; examples are the same in every run.
settings.register_profile("edgetune", deadline=None, derandomize=True)
settings.load_profile("edgetune")


def _built(factory: pytest.TempPathFactory, name: str, **options: object) -> Path:
    from tests.tiny import build_base

    return build_base(factory.mktemp("bases") / name, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with separate embeddings, bfloat16, one file."""
    return _built(tmp_path_factory, "tiny-llama")


@pytest.fixture(scope="session")
def tiny_llama_tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose head is its embedding."""
    return _built(tmp_path_factory, "tiny-llama-tied", tie_word_embeddings=True)


@pytest.fixture(scope="session")
def tiny_llama_sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in several files with an index."""
    return _built(tmp_path_factory, "tiny-llama-sharded", max_shard_size="60KB")


@pytest.fixture(scope="session")
def tiny_llama_bias(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose linears carry biases."""
    return _built(tmp_path_factory, "tiny-llama-bias", attention_bias=True, mlp_bias=True)


@pytest.fixture(scope="session")
def tiny_phi3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Phi-3: qkv and gate_up fused."""
    return _built(tmp_path_factory, "tiny-phi3", model_type="phi3")


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 whose head is its embedding: attention with biases."""
    return _built(tmp_path_factory, "tiny-qwen2", model_type="qwen2", tie_word_embeddings=True)
