"""The lock is the same wherever a build runs."""

from __future__ import annotations

import pytest

from edgetune.errors import StepFailedError
from edgetune.files import dump_json
from edgetune.package.lock import make_lock

VARIANTS = {"cpu-fp32": {"provider": "CPUExecutionProvider", "digest": "ab"}}


def test_keys_are_sorted_at_every_depth() -> None:
    one = make_lock({"b": {"y": 1, "x": [{"q": 1, "p": 2}]}, "a": None}, "demo", VARIANTS, "cd")
    other = make_lock({"a": None, "b": {"x": [{"p": 2, "q": 1}], "y": 1}}, "demo", VARIANTS, "cd")
    assert dump_json(one) == dump_json(other)
    assert list(one) == ["a", "b", "package"]
    assert one["package"] == {"name": "demo", "self_test": "cd", "variants": VARIANTS}


@pytest.mark.parametrize("path", ["/home/me/base", "~/base", "C:\\base", "file:///base", "\\\\x"])
def test_an_absolute_path_is_refused(path: str) -> None:
    with pytest.raises(StepFailedError, match=r"\(lock\.adapters\[1\]\.path\)"):
        make_lock({"adapters": [{}, {"path": path}]}, "demo", VARIANTS, "cd")


def test_names_and_relative_paths_are_kept() -> None:
    lock = make_lock({"base": "org/name", "files": {"a/b": "12"}}, "demo", VARIANTS, "cd")
    assert lock["base"] == "org/name"
