"""One module quantized, the rest in float32: the protocol, and figures that plain torch gives."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgetune.checkpoint.graph_weights import pieces_of, read_matrices, whole_weight
from edgetune.checkpoint.trained import load_plain
from edgetune.reference.render import ScoredItem
from edgetune.reference.survival_worker import choose_items, read_items, serve, with_weight
from tests.tiny_package import VARIANT, tiny_package

DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    package = tiny_package(tmp_path_factory)
    reference = tmp_path_factory.mktemp("survival") / "reference"
    shutil.copytree(package / "self_test", reference / "self_test")
    shutil.copy(package.parent / "reference" / "logprobs.npy", reference)
    return {
        "checkpoint": str(package.parent / "checkpoint"),
        "graph": str(package / VARIANT),
        "reference": str(reference),
        "modules": 2,
        "threads": 1,
    }


def talk(start: dict[str, Any], *requests: dict[str, Any]) -> list[dict[str, Any]]:
    answers = io.StringIO()
    serve(io.StringIO("".join(json.dumps(line) + "\n" for line in (start, *requests))), answers)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def item(number: int, positions: int) -> ScoredItem:
    return ScoredItem(str(number), (1,), (2,) * positions, "", None)


def test_all_items_are_taken_where_they_are_few() -> None:
    scored = choose_items([item(0, 2), item(1, 3)], parameters=1000, modules=10)
    assert [one.id for one in scored.items] == ["0", "1"]
    assert scored.rows == (slice(0, 2), slice(2, 5))


def test_of_many_some_are_taken_from_all_over() -> None:
    items = [item(n, 1 + n % 2) for n in range(100)]
    scored = choose_items(items, parameters=10**11, modules=200)
    assert [one.id for one in scored.items] == [str(n * 100 // 8) for n in range(8)]
    for one, rows in zip(scored.items, scored.rows, strict=True):
        assert rows.stop - rows.start == one.positions
        assert rows.start == sum(i.positions for i in items[: int(one.id)])


def test_a_module_alone_is_what_torch_says(start: dict[str, Any]) -> None:
    ready, found, again = talk(start, {"module": DOWN}, {"module": DOWN})
    assert (ready["ready"], ready["items"]) == (True, 6)
    assert found == again  # the weight was put back in between
    model = load_plain(start["checkpoint"])
    shapes = {n.removesuffix(".weight"): tuple(p.shape) for n, p in model.named_parameters()}
    weight = whole_weight(pieces_of(DOWN, shapes, read_matrices(Path(start["graph"]))))
    model.get_submodule(DOWN).weight.data = weight
    reference = Path(start["reference"])
    log_p = torch.from_numpy(np.load(reference / "logprobs.npy")).double()
    row = 0
    for one, kl in zip(read_items(reference), found["kl"], strict=True):
        ids = torch.tensor([[*one.prompt_ids, *one.target_ids[:-1]]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(one.prompt_ids) - 1 :]
        log_q = torch.log_softmax(logits.double(), -1)
        p = log_p[row : row + one.positions]
        assert kl == pytest.approx(float((p.exp() * (p - log_q)).sum()), rel=1e-2, abs=1e-6)
        row += one.positions
    base = np.load(reference / "self_test" / "base_kl.npy")
    assert sum(ready["base_kl"]) == pytest.approx(float(base.sum()), rel=1e-6)
    assert sum(ready["positions"]) == len(base)
    assert 0 < sum(found["kl"]) < sum(ready["base_kl"])


def test_what_the_graph_does_not_hold_is_null(start: dict[str, Any]) -> None:
    _, *found = talk(start, {"module": "model.norm"}, {"module": "nothing"}, {"stop": True})
    assert found == [{"kl": None}, {"kl": None}]


def test_a_weight_is_put_back_after_an_error() -> None:
    module = torch.nn.Linear(2, 2, bias=False)
    before = module.weight.data.clone()

    def fail() -> list[float]:
        raise RuntimeError("it broke")

    with pytest.raises(RuntimeError, match="it broke"):
        with_weight(module, torch.zeros(2, 2), fail)
    assert module.weight.data.equal(before)
