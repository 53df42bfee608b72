"""Hub ids, on a cache made by hand: what is found, what is told, what the lock records."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgetune.errors import ENVIRONMENT, INPUT_REFUSED, USAGE, EdgetuneError
from edgetune.files import digests_of_folder
from edgetune.line import merge_step, reference_step
from edgetune.lock import make_lock
from edgetune.planning import plan_builds
from edgetune.recipe import Recipe, load_recipe
from edgetune.sources.huggingface import ADAPTER_FILES, BASE_FILES, find_checkpoint, find_folder
from edgetune.sources.resolve import resolve
from tests.merge.merged import merge
from tests.sources.hub import cache
from tests.tiny import make_adapter

pytestmark = pytest.mark.line

MAIN, OLD = "1" * 40, "2" * 40


@pytest.fixture
def hub(tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with a base at two revisions and an adapter, and no way to the network."""
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE
    folder = tmp_path / "home" / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    old = Path(shutil.copytree(tiny_llama, tmp_path / "old"))
    (old / "generation_config.json").write_text('{"max_length": 77}')
    cache(folder, "acme/tiny", MAIN, tiny_llama, "main")
    cache(folder, "acme/tiny", OLD, old, "v1", "refs/pr/3")
    adapter = make_adapter(tiny_llama, folder=tmp_path / "adapter")
    cache(folder, "acme/lora", OLD, adapter, "main")
    more = make_adapter(tiny_llama, folder=tmp_path / "more", seed=2)
    cache(folder, "acme/more", OLD, more, "main")
    return folder


@pytest.mark.parametrize(
    ("path", "revision", "commit"),
    [
        ("acme/tiny", None, MAIN),
        ("acme/tiny@main", None, MAIN),
        ("acme/tiny", "v1", OLD),
        ("acme/tiny@v1", None, OLD),
        ("acme/tiny@v1", "v1", OLD),
        ("acme/tiny@refs/pr/3", None, OLD),
        (f"acme/tiny@{OLD}", None, OLD),
    ],
)
def test_a_revision_is_the_commit_it_names(
    hub: Path, path: str, revision: str | None, commit: str
) -> None:
    found = find_checkpoint(path, revision)
    assert found.folder == hub / "models--acme--tiny" / "snapshots" / commit
    assert (found.origin.name, found.origin.commit) == ("acme/tiny", commit)


@pytest.mark.parametrize(
    ("path", "revision", "code", "words"),
    [
        ("acme/none", None, ENVIRONMENT, "acme/none: no folder here, not in the hub's cache, and"),
        (
            "acme/tiny@v2",
            None,
            ENVIRONMENT,
            "acme/tiny@v2: the hub's cache has main, refs/pr/3, v1",
        ),
        ("acme/tiny@v1", "v2", USAGE, "names one revision, and the recipe gives 'v2'"),
        ("acme/tiny@", None, INPUT_REFUSED, "'' is no revision"),
        ("acme/tiny@../../x", None, INPUT_REFUSED, "'../../x' is no revision"),
        ("acme/tiny/more", None, INPUT_REFUSED, "acme/tiny/more: no such model folder"),
        ("tiny", None, INPUT_REFUSED, "tiny: no such model folder"),
        ("acme--x/tiny", None, INPUT_REFUSED, "no hub id"),
        ("acme/tiny.git", None, INPUT_REFUSED, "no hub id"),
    ],
)
def test_what_is_not_there_is_told(
    hub: Path, path: str, revision: str | None, code: int, words: str
) -> None:
    with pytest.raises(EdgetuneError) as caught:
        find_checkpoint(path, revision)
    assert words in caught.value.message
    assert caught.value.exit_code == code
    assert caught.value.hint


def test_a_folder_goes_before_a_hub_id(
    hub: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_llama, tmp_path / "acme" / "tiny")
    monkeypatch.chdir(tmp_path)
    found = find_checkpoint("acme/tiny")
    assert (found.folder, found.origin.commit) == (tmp_path / "acme" / "tiny", None)
    with pytest.raises(EdgetuneError, match="a folder has no revision"):
        find_checkpoint("acme/tiny", "v1")


class Response:
    """What huggingface_hub's errors want of an answer."""

    status_code = 500
    headers: dict[str, str] = {}  # noqa: RUF012
    request = None


def _online(name: str) -> tuple[str, int, str]:
    return {
        "GatedRepoError": (name, ENVIRONMENT, "acme/x: gated, and the hub does not let"),
        "RepositoryNotFoundError": (name, INPUT_REFUSED, "the hub has no such repository"),
        "RevisionNotFoundError": (name, INPUT_REFUSED, "the hub has no such revision of it"),
        "HfHubHTTPError": (name, ENVIRONMENT, "the hub answers with an error (no)"),
    }[name]


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    "case",
    ["GatedRepoError", "RepositoryNotFoundError", "RevisionNotFoundError", "HfHubHTTPError"],
)
def test_what_the_hub_says(
    hub: Path, case: str, wrapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the library looks into its cache first and wraps the error."""
    import huggingface_hub
    from huggingface_hub import errors

    def refuse(*rest: Any, **options: Any) -> str:
        answer: Any = Response()
        error = getattr(errors, case)("no", response=answer)
        if wrapped:
            raise errors.LocalEntryNotFoundError("not in the cache") from error
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    name, code, words = _online(case)
    with pytest.raises(EdgetuneError) as caught:
        find_checkpoint("acme/x")
    assert words in caught.value.message, name
    assert caught.value.exit_code == code


def test_any_other_failure_is_told_in_one_line(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*rest: Any, **options: Any) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(EdgetuneError, match=r"acme/x: the hub is out of reach \(no route\)") as why:
        find_checkpoint("acme/x")
    assert why.value.exit_code == ENVIRONMENT


@pytest.mark.parametrize("files", [BASE_FILES, ADAPTER_FILES])
def test_neither_code_nor_pickles_nor_copies_are_asked_for(
    hub: Path, files: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    asked: dict[str, Any] = {}

    def note(*rest: Any, **options: Any) -> str:
        asked.update(options)
        return str(hub)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", note)
    find_folder("acme/x", None, files, "model")
    kept = ["adapter_config.json", "adapter_model.safetensors"]
    kept += [] if files == ADAPTER_FILES else ["config.json", "model-00001-of-2.safetensors"]
    kept += ["chat_template.jinja", "additional_chat_templates/a.jinja"]
    unwanted = ["modeling_x.py", "pytorch_model.bin", "model.gguf", "consolidated.safetensors"]
    unwanted += ["original/consolidated.00.pth", "onnx/model.onnx", "onnx/config.json", "README.md"]
    names = filter_repo_objects(
        [*kept, *unwanted],
        allow_patterns=asked["allow_patterns"],
        ignore_patterns=asked["ignore_patterns"],
    )
    assert list(names) == kept


@pytest.mark.parametrize("safe", [True, False])
def test_pickles_are_asked_for_where_there_is_nothing_else(
    safe: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    snapshot = tmp_path / MAIN
    snapshot.mkdir()
    if safe:
        (snapshot / "model.safetensors").write_bytes(b"")
    asked = []

    def note(*rest: Any, **options: Any) -> str:
        asked.append((options["revision"], "pytorch_model*.bin" in options["allow_patterns"]))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", note)
    found = find_checkpoint("acme/x", "v1", pickled=True)
    assert asked == [("v1", False)] + ([] if safe else [(MAIN, True)])
    assert found.origin.as_json() == {"name": "acme/x", "revision": "v1", "commit": MAIN}


def test_a_snapshot_in_part_is_told(hub: Path) -> None:
    (hub / "models--acme--tiny" / "snapshots" / MAIN / "model.safetensors").unlink()
    inputs, problems = resolve(Recipe.model_validate({"name": "a", "base": "acme/tiny"}))
    assert inputs is None
    (problem,) = problems
    assert "neither model.safetensors nor" in problem.message
    assert "if a download broke off, delete " in problem.hint
    assert problem.exit_code == INPUT_REFUSED


def recipe() -> Recipe:
    return Recipe.model_validate(
        {
            "name": "a",
            "base": {"path": "acme/tiny", "revision": "v1"},
            "base_before": None,
            "adapters": [{"path": "acme/lora@main"}, {"path": "acme/more", "weight": 0.5}],
        }
    )


def test_the_lock_records_the_commits(hub: Path, tmp_path: Path) -> None:
    (plan,) = plan_builds(recipe(), ["generic-x86-64"], tmp_path / "out")
    store = tmp_path / "out" / "steps"
    steps = {"merge": merge_step(plan), "reference": reference_step(plan, store)}
    lock = make_lock(plan, steps, {})
    base = {key: lock["base"][key] for key in ("name", "revision", "commit")}
    assert base == {"name": "acme/tiny", "revision": "v1", "commit": OLD}
    assert set(lock["base"]["files"]) >= {"config.json", "model.safetensors", "tokenizer.json"}
    for adapter, name in zip(lock["adapters"], ("acme/lora", "acme/more"), strict=True):
        named = {key: adapter[key] for key in ("name", "revision", "commit")}
        assert named == {"name": name, "revision": "main", "commit": OLD}
    assert str(tmp_path) not in json.dumps(lock)


def test_a_local_folder_has_no_commit(hub: Path, tiny_llama: Path, tmp_path: Path) -> None:
    local = Recipe.model_validate({"name": "a", "base": str(tiny_llama)})
    (plan,) = plan_builds(local, ["generic-x86-64"], tmp_path / "out")
    lock = make_lock(plan, {}, {})
    assert lock["base"]["name"] == tiny_llama.name
    assert lock["base"]["license"]["name"] is None
    assert lock["base"]["license"]["reason"].startswith("no license in README.md")
    assert "commit" not in lock["base"]


def test_the_merged_checkpoint_has_no_links(hub: Path, tiny_llama: Path, tmp_path: Path) -> None:
    base = find_checkpoint("acme/tiny").folder
    adapter = find_folder("acme/lora", None, ADAPTER_FILES, "adapter").folder
    assert (base / "config.json").is_symlink()
    merge(tmp_path / "out", base, [adapter])
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_symlink()]
    merge(tmp_path / "same", tiny_llama, [tmp_path / "adapter"])
    assert digests_of_folder(tmp_path / "out") == digests_of_folder(tmp_path / "same")


def test_a_recipe_s_hub_ids_stay_what_they_are(hub: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "base: acme/tiny@refs/pr/3\nadapters:\n  - path: acme/lora\n    revision: main\n"
    )
    inputs, problems = resolve(load_recipe(file))
    assert not problems
    assert inputs is not None
    assert inputs.base_origin.commit == OLD
    assert inputs.adapters[0].origin.name == "acme/lora"


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE"])
def test_the_command_line_reads_the_cache(hub: Path, tmp_path: Path, variable: str) -> None:
    places = {"HF_HOME": str(hub.parent), "HF_HUB_CACHE": str(hub)}
    environment = {k: v for k, v in os.environ.items() if k not in places}
    command = [sys.executable, "-m", "edgetune", "build", "-m", "acme/tiny@v1", "-a", "acme/lora"]
    done = subprocess.run(
        [*command, "-d", "generic-x86-64", "-o", str(tmp_path / "out"), "--plan"],
        env={**environment, variable: places[variable], "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "lora@generic-x86-64: acme/tiny + LoRA acme/lora" in done.stderr
