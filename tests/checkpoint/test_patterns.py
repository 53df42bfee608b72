"""Patterns of an adapter's config: those people write pass, those that never end do not."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path
from typing import Any

import peft
import pytest

from edgetune.checkpoint.patterns import pattern_problem

MODULES = [
    f"model.layers.{n}.{module}"
    for n in range(80)
    for module in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
]
UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
    r"(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}"
    r"\.(?:self_attn|mlp)\.(?:(?:q_proj|v_proj|down_proj)))"
)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": r".*\.(q_proj|v_proj)"},
        {"target_modules": r"(?i)^(?!.*vision).*(?:Q_PROJ|down_proj).*$"},
        {"target_modules": UNSLOTH},
        {"rank_pattern": {"^model.layers.[0-3].self_attn": 4}, "alpha_pattern": {"q_proj": 8}},
        {"layers_pattern": "layers", "modules_to_save": ["lm_head", "embed_tokens"]},
        {"feedforward_modules": r".*\.(down_proj|fc2)", "peft_type": "IA3"},
        {"rank_pattern": {f"{module}.lora_E": [True] * 4 for module in MODULES}},
        {"n_frequency_pattern": {r"[0-9]\.self_attn.q_proj": 50}, "peft_type": "WAVEFT"},
        {"rank_pattern": {r"layers\.\d+": 4}, "peft_type": "OSF"},
    ],
)
def test_what_people_write(config: dict[str, Any]) -> None:
    started = time.process_time()
    assert pattern_problem(config, MODULES) is None
    assert time.process_time() - started < 10


@pytest.mark.parametrize("bomb", ["(.*)*x", "(([a-z_.0-9])*)*#", "(.*.*.*.*.*.*.*.*.*.*.*.*)#"])
@pytest.mark.parametrize(
    "field",
    [
        "target_modules",
        "exclude_modules",
        "rank_pattern",
        "alpha_pattern",
        "lambda_pattern",
        "n_frequency_pattern",
        "block_size_pattern",
        "feedforward_modules",
        "layers_pattern",
        "modules_to_save",
    ],
)
def test_what_never_ends(field: str, bomb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetune.checkpoint.patterns._MOST_SECONDS", 0.1)
    before = signal.getsignal(signal.SIGALRM)
    maps = field.endswith("_pattern") and field != "layers_pattern"
    value = {bomb: 4} if maps else bomb
    problem = pattern_problem({field: value}, MODULES)
    assert problem == f"{field} is a pattern that takes more than 0.1 second to match"
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize("text", ["(q_proj", "[", "*", "(" * 5000, "a{99999999999999}"])
def test_what_is_none(text: str) -> None:
    problem = pattern_problem({"target_modules": text}, MODULES)
    assert problem is not None
    assert problem.startswith("target_modules is no regular expression (")
    assert len(problem) < 300


def test_only_osf_searches() -> None:
    pattern = {"rank_pattern": {"a)(b": 4}}
    assert pattern_problem({**pattern, "peft_type": "LORA"}, MODULES) is None
    problem = pattern_problem({**pattern, "peft_type": "OSF"}, MODULES)
    assert problem is not None
    assert problem.startswith("rank_pattern is no regular expression (")


def test_no_expression_of_peft_is_forgotten() -> None:
    """Every expression that PEFT matches and that does not stand in its own source."""
    found = set()
    for file in Path(peft.__file__).parent.rglob("*.py"):
        calls = re.findall(r"\bre\.(?:match|search|fullmatch)\((.+?), ", file.read_text("utf-8"))
        found |= {call for call in calls if "{" in call or not call.startswith('r"')}
    assert found == {
        r'rf"(.*\.)?({key})$"',
        r'rf"(.*\.)?({pattern_key})$"',
        r'rf"(.*\.)?{e}$"',  # PEFT's own names of embeddings
        r'rf".*\.{key}$"',
        r'rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\."',
        r'rf"(^|.*\.){m}($|\..*)"',
        "config.exclude_modules",
        "ia3_config.feedforward_modules",
        "pattern",  # of OSF's ranks
        "target_pattern",
    }


def test_a_novel_is_no_pattern() -> None:
    problem = pattern_problem({"target_modules": "a" * 30_000}, MODULES)
    assert problem == "target_modules is a pattern of 30000 characters"
