"""Tasks are found by name, and reading one loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edgetune.errors import UsageError
from edgetune.tasks import load_task, task_names


def test_every_task_offers_what_a_task_offers() -> None:
    assert "text-generation" in task_names()
    for name in task_names():
        task = load_task(name)
        assert task.FORM
        assert task.AUTO_MODEL.startswith("AutoModel")
        assert task.HIGHER_IS_BETTER
        measured = task.measure(None, None, [-1.0])
        assert set(measured) == set(task.HIGHER_IS_BETTER)


@pytest.mark.parametrize("name", ["text_generation", "text-generatoin", "Text-Generation"])
def test_a_misspelt_task_is_refused_with_the_right_name(name: str) -> None:
    with pytest.raises(UsageError, match="unknown task") as caught:
        load_task(name)
    assert caught.value.exit_code == 2
    assert caught.value.hint.startswith("did you mean 'text-generation'?")


@pytest.mark.parametrize("name", ["_rows", "weather", "", "os.path", "../errors"])
def test_what_is_no_task_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="unknown task") as caught:
        load_task(name)
    assert "known tasks: " in caught.value.hint


def test_tasks_load_nothing_heavy() -> None:
    code = (
        "import sys; from edgetune.tasks import load_task, task_names\n"
        "[load_task(name) for name in task_names()]\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
