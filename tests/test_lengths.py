"""At which lengths a model is measured: from config.json, shapes and the machine's memory alone."""

from __future__ import annotations

from typing import Any

import pytest

from edgetune.lengths import (
    LONGEST,
    LONGROPE,
    MOST_OPERATIONS,
    SLIDING,
    WINDOW,
    LongContext,
    choose_lengths,
    layer_weights,
    pass_bytes,
    pass_operations,
    thresholds,
)

GIB = 1 << 30
MISTRAL = {
    "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 32768, "sliding_window": 4096,
}  # fmt: skip
PHI3 = {
    "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
    "rope_scaling": {"type": "longrope"}, "sliding_window": 262144,
}  # fmt: skip
SMALL = {
    "model_type": "mistral", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "sliding_window": 24,
}  # fmt: skip


def chosen(config: dict[str, Any], weights: int = 100_000, gib: float = 16) -> LongContext:
    found = choose_lengths(config, weights, int(gib * GIB))
    assert found is not None
    return found


def spans(found: LongContext) -> list[tuple[str, int, int, int]]:
    return [(s.what, s.at, s.first, s.last) for s in found.stretches]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (MISTRAL, [(SLIDING, 4096)]),
        (PHI3, [(LONGROPE, 4096)]),
        ({**PHI3, "sliding_window": 2047}, [(SLIDING, 2047), (LONGROPE, 4096)]),
        # Wider than the context, or as wide: there is none.
        ({**MISTRAL, "max_position_embeddings": 4096}, []),
        ({**MISTRAL, "sliding_window": None}, []),
        # Not said: the configuration class's own.
        ({k: v for k, v in MISTRAL.items() if k != "sliding_window"}, [(SLIDING, 4096)]),
        ({**PHI3, "rope_scaling": None, "max_position_embeddings": 4096}, []),
        ({**MISTRAL, "model_type": "llama"}, []),
        ({**MISTRAL, "model_type": "qwen2"}, []),
        ({**MISTRAL, "model_type": "qwen2", "use_sliding_window": True}, [(SLIDING, 4096)]),
        # As published: as many layers without a window as there are.
        (
            {
                **MISTRAL,
                "model_type": "qwen2",
                "use_sliding_window": True,
                "max_window_layers": 32,
            },
            [],
        ),
        ({**MISTRAL, "model_type": "gemma2"}, [(SLIDING, 4096)]),
        ({**MISTRAL, "model_type": "gemma3_text", "layer_types": ["full_attention"] * 32}, []),
        ({"model_type": "unheard-of"}, []),
    ],
)
def test_what_changes_with_the_length(
    config: dict[str, Any], expected: list[tuple[str, int]]
) -> None:
    assert thresholds(config) == expected
    assert (choose_lengths(config, 10**9, 64 * GIB) is None) == (not expected)


def test_a_stretch_lies_on_both_sides_and_one_ends_at_the_window() -> None:
    found = chosen(SMALL)
    assert spans(found) == [(SLIDING, 24, 9, 40), (WINDOW, 256, 225, 256)]
    assert [s.positions for s in found.stretches] == [32, 32]
    assert found.not_measured == ()
    assert found.window == 256
    words = "sliding window 24: 9 to 40 tokens; context window 256: 225 to 256 tokens"
    assert found.in_words() == words
    assert found.as_json()["stretches"][0] == {
        "what": SLIDING, "at": 24, "first": 9, "last": 40, "bytes": pass_bytes(SMALL, 40)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("window", "context", "expected"), [(4, 256, (1, 20)), (250, 256, (235, 256))]
)
def test_a_stretch_stays_within_the_text_and_the_context(
    window: int, context: int, expected: tuple[int, int]
) -> None:
    config = {**SMALL, "sliding_window": window, "max_position_embeddings": context}
    assert spans(chosen(config))[0][2:] == expected


def test_work_bounds_the_window_and_never_the_threshold() -> None:
    """3.6 billion weights: a pass over the window would be minutes, over 4112 tokens it is too."""
    found = chosen(PHI3, 3_600_000_000, 1024)
    assert spans(found) == [(LONGROPE, 4096, 4081, 4112)]
    assert pass_operations(PHI3, 3_600_000_000, 4112) > MOST_OPERATIONS
    (reason,) = found.not_measured
    assert reason.startswith("not measured at the context window of 131072 tokens: it takes about")
    assert reason.endswith("operations (predicted), more than 3e+12; the longest measured is 4112")


def test_the_longest_that_work_allows_is_measured_where_it_is_beyond_the_threshold() -> None:
    config = {**SMALL, "max_position_embeddings": 131072, "hidden_size": 1024}
    found = chosen(config, 50_000_000)
    *_, longest = found.stretches
    assert spans(found)[0] == (SLIDING, 24, 9, 40)
    assert (longest.what, longest.at) == (LONGEST, longest.last)
    assert longest.positions == 32
    assert longest.last % 32 == 0
    work = [pass_operations(config, 50_000_000, longest.last + more) for more in (0, 32)]
    assert work[0] <= MOST_OPERATIONS < work[1]
    assert found.not_measured[0].endswith(f"the longest measured is {longest.last}")


def test_memory_bounds_every_stretch() -> None:
    """Half of all there is, whatever is free."""
    needed = pass_bytes(MISTRAL, 4112)
    enough, short = 2 * needed / GIB + 1, 2 * needed / GIB - 1
    assert spans(chosen(MISTRAL, 7 * 10**9, enough))[0] == (SLIDING, 4096, 4081, 4112)
    found = chosen(MISTRAL, 10**6, short)
    assert [s.what for s in found.stretches] == [LONGEST]
    assert found.bytes <= short * GIB / 2 < needed
    first, second = found.not_measured
    assert first.startswith(
        "not measured at the sliding window of 4096 tokens: reading 4112 tokens"
    )
    assert "beside the weights (predicted), more than half of this machine's" in first
    assert second.endswith(f"; the longest measured is {found.stretches[0].last}")


def test_nothing_is_measured_where_nothing_fits() -> None:
    found = chosen(MISTRAL, 7 * 10**9, 0.1)
    assert found.stretches == ()
    assert found.bytes == 0
    assert found.not_measured[-1].endswith("; none is measured")


def test_a_system_that_reserves_a_little_more_changes_nothing() -> None:
    config = {**SMALL, "max_position_embeddings": 131072}
    assert chosen(config, gib=2.0) == chosen(config, gib=1.9) == chosen(config, gib=2.1)
    assert chosen(config, gib=2.0) != chosen(config, gib=3.0)


def test_what_is_written_out_for_all_pairs_counts() -> None:
    plain = {**SMALL, "sliding_window": None}
    capped = {**SMALL, "model_type": "gemma2", "head_dim": 16}
    assert pass_bytes(plain, 2048) == 2 * pass_bytes(plain, 1024)
    assert pass_bytes(SMALL, 24) == pass_bytes(plain, 24)
    assert pass_bytes(SMALL, 2048) - pass_bytes(plain, 2048) == 5 * 2048**2
    assert pass_bytes(capped, 2048) - pass_bytes(SMALL, 2048) == 4 * 8 * 2048**2


def test_only_the_layers_weights_are_worked_through() -> None:
    shapes = {
        "model.embed_tokens.weight": (288, 64),
        "model.layers.0.mlp.up_proj.weight": (128, 64),
    }
    assert layer_weights(shapes) == 128 * 64
